"""A rule that types and bounds cannot say: as CEL for the API server, and as Python for objects that were stored before it was there.

It stands on the node `path` of the object (`[]`: each item of a list); both forms see that node with its defaults.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from finetune_operator.api.quantities import DECIMAL_PATTERN, QUANTITY_PATTERN

Node = Any


@dataclass(frozen=True)
class Rule:
    """`field` (below `path`) is what the message names; `holds` is None for rules about a change."""

    path: str
    field: str
    cel: str
    message: str
    holds: Callable[[Node], bool] | None

    @property
    def text(self) -> str:
        """The message: the field, what is wrong and the fix."""
        return f"{'.'.join(part for part in (self.path, self.field) if part)}: {self.message}"


def some_time(path: str, field: str) -> Rule:
    """A duration that is above 0."""
    cel = f"!has(self.{field}) || self.{field}.matches('[1-9]')"
    return Rule(path, field, cel, "must be above 0", lambda node: re.search("[1-9]", node.get(field, "1")) is not None)


def comparable(*cel: str) -> str:
    """CEL: whether these are quantities, without which a rule that compares them would raise (see `number`)."""
    return " && ".join(f"string({one}).matches(r'{QUANTITY_PATTERN}')" for one in cel)


def number(path: str, field: str, cel: str, message: str, holds: Callable[[float], bool]) -> Rule:
    """Of a decimal: `cel` of `double(self.FIELD)`. What is no number is the pattern's affair: a rule that raised would have the API
    server refuse every word of the status, too, of an object that an older CRD let in.
    """
    guard = f"!has(self.{field}) || !self.{field}.matches(r'{DECIMAL_PATTERN}') || "
    return Rule(path, field, f"{guard}({cel})", message, lambda node: field not in node or holds(float(node[field])))
