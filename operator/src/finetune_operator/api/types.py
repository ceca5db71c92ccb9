"""What the blocks of the spec are made of: the frozen model, and texts and numbers with their bounds."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from finetune_operator.api.quantities import DECIMAL_PATTERN, DURATION_PATTERN, QUANTITY_PATTERN, decimal, seconds


def _checked_duration(text: Any) -> Any:
    """Before the pattern, which says the same to people less well."""
    if isinstance(text, str):
        seconds(text)
    return text


def _checked_decimal(text: str) -> str:
    decimal(text)
    return text


def _written(value: Any) -> Any:
    """Kubernetes takes `cpu: 2` for `cpu: "2"`."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Duration = Annotated[
    str, Field(max_length=32, pattern=DURATION_PATTERN, json_schema_extra={"x-finetune": "duration"}), BeforeValidator(_checked_duration)
]
Decimal = Annotated[
    str, Field(max_length=32, pattern=DECIMAL_PATTERN, json_schema_extra={"x-finetune": "decimal"}), AfterValidator(_checked_decimal)
]
Name = Annotated[str, Field(max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
LabelName = Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]  # a name that is a label's value
Word = Annotated[str, Field(max_length=128)]
OBJECT = r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"  # name of an object of the cluster
Quantity = Annotated[  # what comes before is named last: pydantic leaves a pattern behind it out of the schema
    str, Field(max_length=32, pattern=QUANTITY_PATTERN, json_schema_extra={"x-kubernetes-int-or-string": True}), BeforeValidator(_written)
]


class SpecModel(BaseModel):
    """Frozen; camelCase on the wire; unknown keys fail."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)
