"""pydantic's JSON schema → the structural schema that a CRD may hold.

Strict: a keyword that is not known here fails, and so does a text, list or map without a bound (the API server estimates the
cost of CEL rules from bounds). Optional means absent, never null. Defaults of blocks are `{}`, so that the defaults inside apply;
inside lists there are none, for GitOps tools compare a list as a whole and would find it changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

Schema = dict[str, Any]
# Kept as they are. The order is that of the written file.
_KEPT: Final = (
    "description", "type", "enum", "pattern", "minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems", "maxProperties",
)  # fmt: skip
_EXTENSIONS: Final = (
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
)
# Said by other means: titles repeat names, keys of maps are checked by `load`, `x-finetune` is `fields`' own mark.
_DROPPED: Final = ("title", "propertyNames", "x-finetune", "$defs")
_CONVERTED: Final = ("$ref", "anyOf", "properties", "required", "items", "additionalProperties", "default")


class NotStructural(ValueError):
    """A model says something that a CRD cannot; names the path."""


def convert(model: type[BaseModel], *, defaults: bool = True) -> Schema:
    """The structural schema of a model; `defaults=False` leaves them out (of the status none is)."""
    schema = model.model_json_schema(by_alias=True)
    return _Converter(schema.get("$defs", {})).convert(schema, model.__name__, defaults=defaults)


class _Converter:
    def __init__(self, definitions: Mapping[str, Schema]) -> None:
        self._definitions = definitions

    def convert(self, given: Schema, path: str, *, defaults: bool) -> Schema:
        schema = self._resolved(given, path)
        if unknown := set(schema) - {*_KEPT, *_EXTENSIONS, *_DROPPED, *_CONVERTED}:
            raise NotStructural(f"{path}: {', '.join(sorted(unknown))} is not known; teach api/structural.py what it becomes")
        result: Schema = {key: schema[key] for key in (*_KEPT, *_EXTENSIONS) if key in schema}
        if result.get("x-kubernetes-int-or-string"):
            del result["type"]
        if "properties" in schema:
            result["properties"] = {
                name: self.convert(value, f"{path}.{name}", defaults=defaults) for name, value in schema["properties"].items()
            }
        if required := schema.get("required"):
            result["required"] = required
        if "items" in schema:
            result.setdefault("x-kubernetes-list-type", "atomic")
            result["items"] = self.convert(schema["items"], f"{path}[]", defaults=False)
        if isinstance(schema.get("additionalProperties"), dict):
            result["additionalProperties"] = self.convert(schema["additionalProperties"], f"{path}{{}}", defaults=defaults)
        if defaults and schema.get("default") is not None:
            result["default"] = {} if result.get("type") == "object" else schema["default"]
        _bounded(result, path)
        return result

    def _resolved(self, given: Schema, path: str) -> Schema:
        """The schema without `$ref` and `anyOf … null`; what stands beside them (description, default) wins."""
        schema = dict(given)
        if "anyOf" in schema:
            choices = [choice for choice in schema.pop("anyOf") if choice != {"type": "null"}]
            if len(choices) != 1:
                raise NotStructural(f"{path}: a choice between types; make it flat optional blocks with a rule")
            schema = {**choices[0], **schema}
        if "$ref" in schema:
            name = schema.pop("$ref").removeprefix("#/$defs/")
            return self._resolved({**self._definitions[name], **schema}, path)
        return schema


def _bounded(schema: Schema, path: str) -> None:
    kind = schema.get("type")
    if kind == "string" and "enum" not in schema and "maxLength" not in schema:
        raise NotStructural(f"{path}: a text without maxLength")
    if kind == "array" and "maxItems" not in schema:
        raise NotStructural(f"{path}: a list without maxItems")
    if "additionalProperties" in schema and "maxProperties" not in schema:
        raise NotStructural(f"{path}: a map without maxProperties")
    if kind is None and "x-kubernetes-int-or-string" not in schema:
        raise NotStructural(f"{path}: has no type")
    if kind == "object" and not ({"properties", "additionalProperties", "x-kubernetes-preserve-unknown-fields"} & set(schema)):
        raise NotStructural(f"{path}: an object of which nothing is said; mark it x-kubernetes-preserve-unknown-fields")
