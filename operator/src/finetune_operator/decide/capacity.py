"""How many pods does the load need while users are moved between autoscaled arms?"""

from __future__ import annotations

import math
from typing import Final

from finetune_operator.api.status import Rollout
from finetune_operator.decide.draft import stamp
from finetune_operator.decide.rollout import states
from finetune_operator.decide.served import health_of
from finetune_operator.observed import ArmHealth, Observed
from finetune_operator.workloads.objects import time

FALL_SECONDS: Final = 300.0  # as an autoscaler itself waits before it takes pods back


def with_capacity(o: Observed, r: Rollout) -> Rollout:
    """What autoscaled arms keep while users are moved: as many pods as the load was seen to need. The arm that users leave would shrink
    else, and could not take them back. Before anybody is moved it is what the present arm has."""
    scaling = o.spec.serving.autoscaling if o.spec.serving else None
    if scaling is None:
        return r.model_copy(update={"capacity": None})
    stable, canary = health_of(o, r.stable), health_of(o, r.arm)
    if r.state in states.UNMOVED:
        needed = stable.wanted
    else:
        r, kept = _kept(o, r, held=scaling.autoscaler == "HPA")
        needed = max(kept, _grown(stable, kept), _grown(canary, kept) if r.weight >= 100 else 0)
    return r.model_copy(update={"capacity": min(max(scaling.min_replicas, needed), scaling.max_replicas)})


def capacity_of(o: Observed, r: Rollout) -> int:
    """Pods that the new arm must have before more users come: what the load needs, or what the spec says, which may have grown."""
    serving = o.spec.serving
    return serving.replicas if serving and serving.autoscaling is None else r.capacity or 0


def _grown(arm: ArmHealth, kept: int) -> int:
    """Pods that more load has brought the arm; not those that its autoscaler only has not taken back yet."""
    return arm.wanted if arm.needed is None or arm.needed > kept else 0


def _kept(o: Observed, r: Rollout, *, held: bool) -> tuple[Rollout, int]:
    """What of the capacity is kept as the load falls: what the present arm has, by the share of the users that it serves, or where the
    operator itself holds the pods (`held`) what both arms' autoscalers found, at the most in FALL_SECONDS. (the rollout, pods)

    Nothing falls while users are on their way back: answers of the arm that they leave may be cheap errors, so that the figures show less
    than what comes; and once no router sends anybody there the rollout is over, and nothing is kept.
    """
    kept, figures = r.capacity or 0, [health_of(o, arm).needed for arm in (r.stable, r.arm)]
    if r.state == states.ROLLING_BACK:
        return r, kept
    if not held:
        return r, min(kept, math.ceil(health_of(o, r.stable).wanted * 100 / (100 - r.weight))) if r.weight < 100 else kept
    known = [figure for figure in figures if figure is not None]
    since, most = r.memory.get("fewer") or (stamp(o.now), 0)
    memory = {k: v for k, v in r.memory.items() if k != "fewer"}
    if len(known) < len(figures) or sum(known) >= kept:
        return r.model_copy(update={"memory": memory}), kept
    most = max(most, sum(known))
    began = time(since)
    if began is None or (o.now - began).total_seconds() > FALL_SECONDS:
        return r.model_copy(update={"memory": memory}), most
    return r.model_copy(update={"memory": {**memory, "fewer": [since, most]}}), kept
