"""What is seen in a cycle and what is to come of it, and what the routers and arms say by it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from finetune_operator import conditions
from finetune_operator.api.status import Rollout
from finetune_operator.decide.rollout.states import ABORT, PAUSE, PROMOTE
from finetune_operator.observed import Answer, ArmHealth
from finetune_operator.traffic import RouterState, ServerState, Structure
from finetune_operator.workloads.run import Waiting

POLL_SECONDS: Final = 2.0
MISSING: Final = 10  # of so many pods one may be missing
OUTAGE_SECONDS: Final = 60.0  # an arm without a ready pod for so long is down, not restarting


@dataclass(frozen=True)
class Scene:
    """What is seen of both arms, of the routers, of the arms' servers and of Prometheus where a guard asks them. `abort` says why the
    canary is wanted no longer; `stable_patience` is how many seconds the present arm may be without a ready pod before the new one
    takes all its users; `taken`: the name of a child is somebody else's; `wish` is what the user asks of this rollout; `capacity` is
    how many pods the new arm must have before it gets more users."""

    now: datetime
    stable: ArmHealth
    canary: ArmHealth
    routers: tuple[RouterState, ...]
    routers_wanted: int
    structure: Structure
    servers: tuple[ServerState, ...] = ()
    answers: tuple[Answer, ...] = ()
    router_waiting: Waiting | None = None
    stable_patience: float = OUTAGE_SECONDS
    taken: bool = False
    hold: bool = False
    capacity: int = 0
    abort: str = ""
    wish: str = ""

    @property
    def held(self) -> str:
        """Why it goes no further, as a reason; empty when it may."""
        if self.wish in (PAUSE, ABORT):
            return conditions.PAUSED_BY_USER
        return conditions.PAUSED if self.hold else ""

    def barred(self, pods: int) -> bool:
        """Can what is to have pods, and is to have none yet, not be made for its name? That is nobody's fault, and no time is counted."""
        return self.taken and pods == 0


@dataclass(frozen=True)
class Step:
    """The rollout as it will be in the status, and the routers that must hear the weight now."""

    rollout: Rollout
    pushes: Mapping[str, int]
    message: str
    reason: str = ""


def in_force(scene: Scene, weight: int) -> bool:
    """Does every ready router serve this structure with this weight? At least one must."""
    ready = [r for r in scene.routers if r.ready]
    return bool(ready) and all((r.version, r.weight) == (scene.structure.version, weight) for r in ready)


def unheard(scene: Scene, weight: int) -> dict[str, int]:
    """Routers that serve this structure with another weight."""
    return {s.pod: weight for s in scene.routers if s.version == scene.structure.version and s.weight != weight}


def staying(scene: Scene) -> list[RouterState]:
    """The routers of whom it is told: not those that somebody deletes."""
    return [s for s in scene.routers if not s.leaving]


def can_go_back(scene: Scene, r: Rollout) -> bool:
    """Users are never taken back to an arm without a pod that serves."""
    return r.weight == 0 or scene.stable.ready > 0


def enough(pods: int) -> int:
    """Of the pods that an arm needs: one in ten may be missing, so that one bad machine among many does not hold a rollout."""
    return pods - pods // MISSING


def too_few(scene: Scene, r: Rollout) -> bool:
    """Capacity before traffic: has the load grown, and too few of the pods that it needs are ready on the new arm? Where the present arm
    serves nobody a few are better than none: those who must be moved, or are to be by the user's word, do not wait."""
    asked = scene.wish == PROMOTE and not scene.stable.ready
    return scene.canary.ready < enough(scene.capacity) and not (asked or r.memory.get("outage"))


def first_error(routers: Iterable[RouterState]) -> str:
    """Why the first router that could not be asked could not; empty when all could."""
    return next((f"; router {s.pod} cannot be asked: {s.error}" for s in routers if s.error), "")
