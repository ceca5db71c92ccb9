"""`spec.rollout.guards`: what traffic must show while users move."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import Field

from finetune_operator.api.fields import LIVE
from finetune_operator.api.quantities import DECIMAL_PATTERN
from finetune_operator.api.rule import Node, Rule
from finetune_operator.api.types import Decimal, Duration, SpecModel

# What the operator puts its own names in for, in the user's PromQL (decide/queries.py).
PLACES: Final = ("${arm}", "${revision}", "${pods}", "${canary}", "${stable}", "${namespace}", "${finetune}", "${window}")
PLACE: Final = r"\$\{[A-Za-z_][^}]*\}"  # `${1}` is label_replace's own
GuardName = Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]


class Query(SpecModel):
    """A question of your own to the operator's Prometheus, and the numbers that are well."""

    name: Annotated[GuardName, LIVE] = Field(description="What evidence and messages call it.")
    query: Annotated[Annotated[str, Field(min_length=1, max_length=4096)], LIVE] = Field(
        description="PromQL that gives one number. With ${arm}, ${revision} or ${pods} (a regular expression of an arm's pods) in it, it is "
        "asked of each arm; also ${namespace}, ${finetune}, ${canary}, ${stable} (the arms' names), and ${window}, the time since the step began."
    )
    max: Annotated[Decimal | None, LIVE] = Field(default=None, description="The canary fails above it, unless stable is above it too.")
    min: Annotated[Decimal | None, LIVE] = Field(default=None, description="The canary fails below it, unless stable is below it too.")


class Guards(SpecModel):
    """What traffic must show while users move."""

    max_error_rate_percent: Annotated[int, LIVE] = Field(
        default=2, ge=0, le=100, description="Of inference requests. Rolled back: above it, and above what stable has."
    )
    max_error_regression_percent: Annotated[int | None, LIVE] = Field(
        default=None, ge=0, le=10000, description="Over stable's error rate, however low that is; absent: not asked."
    )
    max_latency_regression_percent: Annotated[int, LIVE] = Field(
        default=25, ge=0, le=10000, description="Over stable's median and 95th percentile of the time to the end of an answer, both."
    )
    max_time_to_first_token_regression_percent: Annotated[int | None, LIVE] = Field(
        default=None, ge=0, le=10000, description="The same of the time to the first token, by the arms' own metrics; absent: not asked."
    )
    max_time_per_output_token_regression_percent: Annotated[int | None, LIVE] = Field(
        default=None, ge=0, le=10000, description="The same of the time per token after the first; absent: not asked."
    )
    max_unusable_regression_percent: Annotated[int | None, LIVE] = Field(
        default=None,
        ge=0,
        le=10000,
        description="Over stable's share of answers that are empty or cut off at their longest, by the arms' own metrics; absent: not asked.",
    )
    queries: list[Query] | None = Field(
        default=None,
        max_length=8,
        description="Questions of your own to the Prometheus that the operator's chart names (prometheus.url); docs/guards.md.",
    )
    min_requests: Annotated[int, LIVE] = Field(
        default=200, ge=0, le=10000000, description="Of the canary in each step: before that many no guard passes."
    )
    on_insufficient: Annotated[Literal["Extend", "Hold", "Promote", "Rollback"], LIVE] = Field(
        default="Extend",
        description="What becomes of a step that cannot be judged `maxExtension` after its time: it waits on; it is held and says so (Paused); "
        "the next step begins; everybody goes back.",
    )
    max_extension: Annotated[Duration, LIVE] = Field(default="1h", description="For so long a step that cannot be judged yet is extended.")


def _places_known(query: Node) -> bool:
    return set(re.findall(PLACE, query["query"])) <= set(PLACES)


def _limits_in_order(query: Node) -> bool:
    return "min" not in query or "max" not in query or float(query["min"]) <= float(query["max"])


RULES: Final = (
    Rule(
        "spec.rollout.guards", "queries",
        "!has(self.queries) || self.queries.all(a, self.queries.exists_one(b, b.name == a.name))",
        "two have the same name; give each its own",
        lambda guards: len({q["name"] for q in guards.get("queries", ())}) == len(guards.get("queries", ())),
    ),
    Rule(
        "spec.rollout.guards.queries[]", "",
        "has(self.max) || has(self.min)",
        "needs max, min, or both: the numbers between which all is well",
        lambda query: "max" in query or "min" in query,
    ),
    Rule(
        "spec.rollout.guards.queries[]", "min",
        f"!has(self.min) || !has(self.max) || !self.min.matches(r'{DECIMAL_PATTERN}') || !self.max.matches(r'{DECIMAL_PATTERN}') || "
        "double(self.min) <= double(self.max)",
        "must not be above max",
        _limits_in_order,
    ),
    Rule(
        "spec.rollout.guards.queries[]", "query",
        f"self.query.findAll(r'{PLACE}').all(p, p in [{', '.join(repr(place) for place in PLACES)}])",
        f"names a placeholder that there is not; there are {', '.join(PLACES)}",
        _places_known,
    ),
)  # fmt: skip
