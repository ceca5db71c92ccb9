"""What the user asks of a rollout."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from finetune_operator.api.blocks.guards import Guards

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
