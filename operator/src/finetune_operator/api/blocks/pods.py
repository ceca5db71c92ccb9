"""`spec.pods`: overrides for every pod."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from finetune_operator.api.fields import REDEPLOY
from finetune_operator.api.types import Name, SpecModel, Word

_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"


def _checked_affinity(affinity: dict[str, Any]) -> dict[str, Any]:
    """What the operator adds terms of its own to has the shape that they need; the API server checks the rest."""
    for kind in ("podAffinity", "nodeAffinity"):
        block = _shaped(affinity.get(kind), {}, kind)
        required = _shaped(block.get(_REQUIRED), [] if kind == "podAffinity" else {}, f"{kind}.{_REQUIRED}")
        terms = (
            required if kind == "podAffinity" else _shaped(required.get("nodeSelectorTerms"), [], f"{kind}.{_REQUIRED}.nodeSelectorTerms")
        )
        for term in terms:
            _shaped(_shaped(term, {}, f"each term of {kind}").get("matchExpressions"), [], f"{kind}: matchExpressions")
        _shaped(block.get(_PREFERRED), [], f"{kind}.{_PREFERRED}")
    return affinity


def _shaped(value: Any, like: Any, what: str) -> Any:
    if value is not None and not isinstance(value, type(like)):
        raise ValueError(f"{what} must be {'a list' if like == [] else 'an object'}")
    return value or like


Free = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]


class EnvVar(SpecModel):
    """A variable of every pod."""

    name: Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="Wins over the operator's own.")]
    value: Annotated[str, Field(max_length=4096, description="Its text.")] = ""


class Pods(SpecModel):
    """Overrides for every pod of the FineTune."""

    service_account_name: Annotated[Name | None, REDEPLOY] = None
    image_pull_secrets: Annotated[list[Name] | None, REDEPLOY] = Field(default=None, max_length=8)
    node_selector: Annotated[dict[Word, Word] | None, REDEPLOY] = Field(default=None, max_length=32)
    tolerations: Annotated[list[Free] | None, REDEPLOY] = Field(default=None, max_length=32)
    affinity: Annotated[Annotated[Free, AfterValidator(_checked_affinity)] | None, REDEPLOY] = None
    annotations: Annotated[dict[Word, Annotated[str, Field(max_length=1024)]] | None, REDEPLOY] = Field(default=None, max_length=32)
    env: Annotated[list[EnvVar] | None, REDEPLOY] = Field(default=None, max_length=64)
