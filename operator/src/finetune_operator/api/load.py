"""The spec of an object as the API server holds it → `Spec`. What the API server refuses is refused here again: an object may
have been stored before a rule was there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from finetune_operator.api.rules import broken
from finetune_operator.api.spec import Spec
from finetune_operator.errors import SpecError

SHOWN = 8  # problems in one message
LONGEST = 1000  # characters: a condition's message holds 1 KiB


def load_spec(finetune: Mapping[str, Any]) -> Spec:
    """The typed spec; SpecError names each wrong field, what is wrong and the fix."""
    try:
        spec = Spec.model_validate(finetune.get("spec") or {})
    except ValidationError as error:
        raise SpecError(_joined([_explain(item) for item in error.errors()])) from error
    written = {"metadata": finetune["metadata"], "spec": spec.model_dump(by_alias=True, exclude_none=True)}
    if texts := broken(written):
        raise SpecError(_joined(texts))
    return spec


def _explain(item: ErrorDetails) -> str:
    path = "spec" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"])
    if item["type"] == "missing":
        return f"{path}: is required; set it"
    if item["type"] == "extra_forbidden":
        return f"{path}: is no field of a FineTune; remove it or correct its name"
    reason = item["msg"].removeprefix("Value error, ")
    return f"{path}: {reason[0].lower()}{reason[1:]}, but it is {str(item['input'])[:60]!r}; correct it"


def _joined(texts: list[str]) -> str:
    more = f"; and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ("; ".join(texts[:SHOWN]) + more)[:LONGEST]
