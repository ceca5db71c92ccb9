"""`spec.rollout`: how users are moved, who they are, and A/B tests."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from finetune_operator.api.blocks.guards import Guards
from finetune_operator.api.fields import LIVE
from finetune_operator.api.rule import Node, Rule, some_time
from finetune_operator.api.types import Duration, Name, SpecModel

FieldName = Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$")]
HeaderName = Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*$")]


class Step(SpecModel):
    """A share of the users, for a time."""

    weight: Annotated[int, LIVE] = Field(ge=1, le=100, description="Percent of the users.")
    hold: Annotated[Duration, LIVE] = Field(default="0s", description="For so long at least; absent: 0s.")


class Identity(SpecModel):
    """Where a request's user is read from; the first of the list that names one counts."""

    header: Annotated[HeaderName | None, LIVE] = Field(
        default=None, description="A request header: one that your gateway sets, or Authorization, which stands for who has the API key."
    )
    body_field: Annotated[FieldName | None, LIVE] = Field(
        default=None, description="A text at the top of a JSON body of up to 1 MiB with a Content-Length: user, safety_identifier."
    )


class ExposureLog(SpecModel):
    """The routers write a line of JSON to their log for each inference request of a user: who (a keyed hash), which arm, how it went."""

    secret_name: Annotated[Name, LIVE] = Field(
        description="Secret whose entry `key` (at least 16 characters) users are hashed with; keep it the same while the experiment runs."
    )


class Experiment(SpecModel):
    """An A/B test: the split stays where it is until it is decided. `kubectl finetune ab` compares the arms."""

    weight: Annotated[int, LIVE] = Field(ge=1, le=99, description="Percent of the users on the new arm; smaller steps come first.")
    duration: Annotated[Duration | None, LIVE] = Field(
        default=None, description="Then the larger steps follow; absent: until `promote` or `abort` is asked for."
    )
    log: ExposureLog | None = Field(default=None, description="Absent: nothing is logged.")


class Rollout(SpecModel):
    """How users are moved."""

    steps: list[Step] | None = Field(default=None, min_length=1, max_length=20, description="Default 10 % for 30m, 50 % for 1h, 100 %.")
    identity: list[Identity] | None = Field(
        default=None, max_length=8, description="Default header x-user-id; requests without one stay on stable."
    )
    experiment: Experiment | None = None
    guards: Guards = Guards()
    bake: Annotated[Duration, LIVE] = Field(default="1h", description="The old arm is kept warm for this time after the last step.")
    progress_deadline: Annotated[Duration, LIVE] = Field(
        default="20m",
        description="A canary that is not ready so long after the present arm is, is rolled back. A longer one than 15m is also how long "
        "a server that is made from now on may load before it is restarted, at most a day.",
    )


def _weights_grow(steps: Node) -> bool:
    weights = [step["weight"] for step in steps]
    return weights == sorted(set(weights)) and weights[-1] == 100


RULES: Final = (
    some_time("spec.rollout.experiment", "duration"),
    Rule(
        "spec.rollout", "steps",
        "!has(self.steps) || (self.steps[self.steps.size() - 1].weight == 100 && self.steps.map(s, s.weight).isSorted() && "
        "self.steps.all(a, self.steps.exists_one(b, b.weight == a.weight)))",
        "weights must grow from step to step, and the last must be 100",
        lambda rollout: "steps" not in rollout or _weights_grow(rollout["steps"]),
    ),
    Rule(
        "spec.rollout.identity[]", "",
        "has(self.header) != has(self.bodyField)",
        "name either a header or a bodyField",
        lambda identity: ("header" in identity) != ("bodyField" in identity),
    ),
    Rule(
        "spec.rollout.identity[]", "header",
        "!has(self.header) || !self.header.lowerAscii().startsWith('x-finetune-')",
        "x-finetune- begins the routers' own headers; name one of yours",
        lambda identity: not identity.get("header", "").lower().startswith("x-finetune-"),
    ),
)  # fmt: skip
