"""`spec.economics`: what serving is compared with in money."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from finetune_operator.api.fields import LIVE
from finetune_operator.api.rule import Node, Rule, number
from finetune_operator.api.types import Decimal, SpecModel, Word

Tokens = Annotated[int, Field(ge=1, le=1_000_000_000_000_000)]


class Alternative(SpecModel):
    """What else could answer the users' requests, and what it asks for that."""

    name: Annotated[Word, LIVE] = Field(min_length=1, description="What pages and messages call it.")
    input_price: Annotated[Decimal, LIVE] = Field(description='Of a million tokens of prompts, as "0.15".')
    output_price: Annotated[Decimal, LIVE] = Field(description="Of a million tokens of answers.")


class ExpectedTraffic(SpecModel):
    """What users ask in a month, on average over the time that is looked at."""

    requests_per_month: Annotated[Tokens | None, LIVE] = Field(
        default=None, description="Each with as many tokens as a row of the test split had, as the evaluation counted them."
    )
    input_tokens_per_month: Annotated[Tokens | None, LIVE] = Field(default=None, description="Of prompts; instead of `requestsPerMonth`.")
    output_tokens_per_month: Annotated[Tokens | None, LIVE] = Field(default=None, description="Of answers; with `inputTokensPerMonth`.")


class Economics(SpecModel):
    """What serving is compared with in money: on the evaluation's page, and in `status.economics` by today's prices."""

    alternative: Alternative | None = None
    traffic: ExpectedTraffic | None = None
    pod_hourly_price: Annotated[Decimal | None, LIVE] = Field(
        default=None,
        description="Of one model server. Default: of its accelerators, by their profile's hourlyPrice; a server without any has no price.",
    )
    one_time_cost: Annotated[Decimal | None, LIVE] = Field(
        default=None,
        description="What was paid once besides the accelerators' time in `status.cost`: data, work, training without a price.",
    )


MONEY: Final = (
    ("spec.economics", "podHourlyPrice"), ("spec.economics", "oneTimeCost"),
    ("spec.economics.alternative", "inputPrice"), ("spec.economics.alternative", "outputPrice"),
)  # fmt: skip


def _is_money(amount: float) -> bool:
    return 0 <= amount <= 1e12


def _traffic_is_one_thing(traffic: Node) -> bool:
    there = {"inputTokensPerMonth", "outputTokensPerMonth"} & set(traffic)
    return len(there) == (0 if "requestsPerMonth" in traffic else 2)


RULES: Final = (
    *(
        number(path, field, f"double(self.{field}) >= 0.0 && double(self.{field}) <= 1e12", "must be from 0 to 1e12", _is_money)
        for path, field in MONEY
    ),
    Rule(
        "spec.economics.traffic", "",
        "has(self.requestsPerMonth) ? !has(self.inputTokensPerMonth) && !has(self.outputTokensPerMonth) : "
        "has(self.inputTokensPerMonth) && has(self.outputTokensPerMonth)",
        "name either requestsPerMonth, or inputTokensPerMonth and outputTokensPerMonth",
        _traffic_is_one_thing,
    ),
)  # fmt: skip
