"""What an edit of each field does, and the canonical form in which fields are compared.

A revision is the Retrain fields as the user wrote them, an arm the Redeploy fields: neither depends on defaults, so a
new operator version with new defaults never retrains or redeploys.
"""

from __future__ import annotations

import hashlib
import json
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from finetune_operator.api.quantities import canonical_decimal, canonical_duration


@dataclass(frozen=True, eq=False)  # each is there once
class FieldClass:
    """The marker on a leaf of the spec."""

    name: str
    meaning: str


RETRAIN: Final = FieldClass("Retrain", "makes a new revision, which is trained and rolled out")
REEVALUATE: Final = FieldClass("Reevaluate", "scores the newest revision again, unless it is live")
REDEPLOY: Final = FieldClass("Redeploy", "makes a new arm, which goes through the canary")
LIVE: Final = FieldClass("Live", "changes in place")
IMMUTABLE: Final = FieldClass("Immutable", "is refused")


def classes(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldClass | None]]:
    """(path, class) of every leaf below the model; a leaf without a marker has None (a test forbids that)."""
    for name, info in model.model_fields.items():
        path = f"{prefix}{info.alias or name}"
        marker, nested = field_class(info), nested_model(info.annotation)
        if marker is None and nested is not None:
            yield from classes(nested, f"{path}.")
        else:
            yield path, marker


def field_class(info: FieldInfo) -> FieldClass | None:
    """The field's marker, if it has one."""
    return next((m for m in info.metadata if isinstance(m, FieldClass)), None)


def nested_model(annotation: Any) -> type[BaseModel] | None:
    """The model inside `Model`, `Model | None` or `list[Model]`."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias) and issubclass(annotation, BaseModel):
        return annotation
    for argument in typing.get_args(annotation):
        if (found := nested_model(argument)) is not None:
            return found
    return None


def extract(value: Mapping[str, Any], model: type[BaseModel], wanted: FieldClass) -> dict[str, Any]:
    """The fields of one class as written, in canonical form; what is absent or empty stays absent."""
    result: dict[str, Any] = {}
    for item in _fields(model, wanted):
        given = value.get(item.key)
        if given is not None and (part := _part(given, item, wanted)) not in (None, {}, [], ""):
            result[item.key] = part
    return result


@dataclass(frozen=True)
class _Field:
    """What a model says of one of its fields: its name on the wire, its class or its model, and the canonical form of a text."""

    key: str
    marker: FieldClass | None
    nested: type[BaseModel] | None
    kind: str | None


@lru_cache(maxsize=256)
def _fields(model: type[BaseModel], wanted: FieldClass) -> tuple[_Field, ...]:
    """Those of that class, or with leaves of that class below them."""
    found = (_field(info.alias or name, info) for name, info in model.model_fields.items())
    return tuple(item for item in found if wanted in _within(item))


def _field(key: str, info: FieldInfo) -> _Field:
    return _Field(key, field_class(info), nested_model(info.annotation), _kind(info))


def _within(item: _Field) -> set[FieldClass | None]:
    """The classes of all leaves below a field."""
    return {item.marker} if item.marker or not item.nested else {below for _, below in classes(item.nested)}


def _part(value: Any, item: _Field, wanted: FieldClass) -> Any:
    if item.marker is not None:
        return _canonical(value, item.kind) if item.marker is wanted else None
    if item.nested is None:
        return None
    if isinstance(value, list):
        items = [extract(entry, item.nested, wanted) for entry in value]
        return items if any(items) else None  # places count only where something of the class is in one of them
    return extract(value, item.nested, wanted)


def _canonical(value: Any, kind: str | None) -> Any:
    if isinstance(value, str):
        if kind == "duration":
            return canonical_duration(value)
        if kind == "decimal":
            return canonical_decimal(value)
    return value


def _kind(info: FieldInfo) -> str | None:
    """`duration` or `decimal`, from the annotation's schema mark."""
    seen = [info.json_schema_extra, *_extras(info.metadata), *_extras_of(info.annotation)]
    return next((str(e["x-finetune"]) for e in seen if isinstance(e, dict) and "x-finetune" in e), None)


def _extras(metadata: list[Any]) -> list[Any]:
    return [m.json_schema_extra for m in metadata if isinstance(m, FieldInfo)]


def _extras_of(annotation: Any) -> list[Any]:
    found: list[Any] = []
    for argument in typing.get_args(annotation):
        if isinstance(argument, FieldInfo):
            found.append(argument.json_schema_extra)
        found.extend(_extras_of(argument))
    return found


_CANONICAL: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any, length: int = 8) -> str:
    """Hex digest of a value's canonical JSON."""
    return hashlib.sha256(_CANONICAL.encode(value).encode()).hexdigest()[:length]
