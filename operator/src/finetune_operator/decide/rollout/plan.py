"""What the user asks of a rollout."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from finetune_operator.api.blocks.guards import Guards
from finetune_operator.api.blocks.rollout import Step
from finetune_operator.api.quantities import seconds
from finetune_operator.api.spec import Spec
from finetune_operator.api.status import Experiment
from finetune_operator.decide.draft import Draft
from finetune_operator.decide.served import arm_of
from finetune_operator.observed import Observed

DEFAULT_STEPS: Final = (Step(weight=10, hold="30m"), Step(weight=50, hold="1h"), Step(weight=100))
ENDLESS: Final = math.inf  # how long a step is held that only the user ends


@dataclass(frozen=True)
class Plan:
    """What the user asks of the rollout: growing steps as (percent, seconds) up to 100 %, and what guards it. `experiment` is the step
    of an A/B test, which is one of them: its time may be ENDLESS."""

    steps: tuple[tuple[int, float], ...]
    bake: float
    deadline: float
    guards: Guards
    extension: float = 0.0  # seconds that a step which cannot be judged is extended before `guards.on_insufficient` is asked
    experiment: tuple[int, float] | None = None


def plan_of(o: Observed, d: Draft, arm: str, fixed: Experiment | None = None) -> Plan:
    """The user's steps; an arm that was promoted before takes all users at once, and bakes. `fixed`: the rollout's A/B test until now."""
    spec: Spec = o.spec
    known = arm_of(d.status, arm)
    steps = tuple((s.weight, seconds(s.hold)) for s in spec.rollout.steps or DEFAULT_STEPS)
    again = bool(known and known.promoted)
    experiment = None if again else _experiment(spec, fixed)
    if experiment:
        share = experiment[0]
        steps = (*(s for s in steps if s[0] < share), experiment, *(s for s in steps if s[0] > share))
    if again:
        steps = ((100, 0.0),)
    bake, deadline, guards = seconds(spec.rollout.bake), seconds(spec.rollout.progress_deadline), spec.rollout.guards
    return Plan(steps, bake, deadline, guards, seconds(guards.max_extension), experiment)


def _experiment(spec: Spec, fixed: Experiment | None) -> tuple[int, float] | None:
    """The step of the A/B test, of which a rollout has one: a split that was fixed stays, and what is over does not begin again."""
    asked = spec.rollout.experiment
    if asked is None or (fixed and fixed.until):
        return None
    return fixed.weight if fixed else asked.weight, seconds(asked.duration) if asked.duration else ENDLESS
