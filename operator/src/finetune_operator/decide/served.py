"""Which arms are there, and how are they?"""

from __future__ import annotations

from finetune_operator.api.status import Arm, Status
from finetune_operator.decide.draft import ArmWanted, Draft, Serving
from finetune_operator.decide.rollout.states import ACTIVE, UNMOVED
from finetune_operator.decide.stages import BASE
from finetune_operator.observed import ArmHealth, Observed


def live_arms(d: Draft) -> tuple[ArmWanted, ...]:
    """The arm that the users have, where there is one."""
    return (ArmWanted(d.status.live_arm, d.status.live_revision or BASE),) if d.status.live_arm else ()


def other_arms(o: Observed, d: Draft) -> tuple[ArmWanted, ...]:
    """Arms that still run and serve nobody: kept until the routers know."""
    return tuple(
        ArmWanted(name, str(o.templates[name].get("revision", BASE)))
        for name in sorted(o.arms)
        if name != d.status.live_arm and name in o.templates
    )


def used_arms(status: Status) -> tuple[str, ...]:
    """The arms that users are on: what is live, and from the first step until the end of the rollout the new one."""
    r = status.rollout
    moved = (r.arm,) if r is not None and r.state in ACTIVE - UNMOVED else ()
    return (status.live_arm, *moved) if status.live_arm else ()


def arm_of(status: Status, name: str) -> Arm | None:
    """What the status says of the arm."""
    return next((a for a in status.arms if a.name == name), None)


def health_of(o: Observed, arm: str) -> ArmHealth:
    """How its pods are; none where nothing is seen of it."""
    return o.arms.get(arm) or ArmHealth()


def serving_of(o: Observed, arm: str | None) -> Serving | None:
    """The arm that the users have, with its pods."""
    health = health_of(o, arm) if arm else ArmHealth()
    return Serving(arm, health.ready, health.wanted) if arm else None
