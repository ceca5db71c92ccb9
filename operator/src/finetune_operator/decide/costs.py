"""What scoring and serving cost beside training. What scored counts towards `budget.maxCost`, from when its pod came to its machine until
its Job had ended; what serves is told by the hour. On CPUs neither has a price, and neither is counted."""

from __future__ import annotations

from typing import Final

from finetune_operator import names
from finetune_operator.api.status import Cost, Meter, Revision, ScoringCost, ServingCost
from finetune_operator.build.arm import accelerators
from finetune_operator.build.jobs import deadline
from finetune_operator.decide.attempts import grown, paid, price
from finetune_operator.decide.draft import Draft, stamp
from finetune_operator.decide.economics import pod_hour, profile
from finetune_operator.observed import Observed
from finetune_operator.workloads.objects import time
from finetune_operator.workloads.run import Run

ALIVE: Final = ("Waiting", "Running", "Ending")


def metered(o: Observed, d: Draft) -> Draft:
    """Adds what a scoring Job took once it has ended, of every revision, whatever the newest one waits for."""
    for revision in d.status.revisions:
        for stage in names.SCORING:
            d = _metered(o, d, revision.name, stage)
    return d


def summary(o: Observed, d: Draft) -> Cost:
    """The status's cost with its sums: by today's price of what serves."""
    cost = d.status.cost
    total = paid(cost)
    return cost.model_copy(update={"total": None if total is None else f"{total:.4f}", "serving": _serving(o, d)})


def _metered(o: Observed, d: Draft, name: str, stage: str) -> Draft:
    revision = next(r for r in d.status.revisions if r.name == name)
    meter, number = revision.meters.get(stage), revision.tries.get(stage, 0)
    if meter and meter.since:
        return _settled(o, d, revision, stage, meter)
    run = _run(o, name, stage, number)
    if run.since is None or (meter and meter.number >= number) or not (count := _accelerators(o)):
        return d
    hourly = price(o)
    meter = Meter(number=number, since=stamp(run.since), gpus=count, gpu_hour=None if hourly is None else f"{hourly:.4f}")
    return _settled(o, d, revision, stage, meter)


def _settled(o: Observed, d: Draft, revision: Revision, stage: str, meter: Meter) -> Draft:
    """With the meter in the status, or with what it says in the cost where its Job has ended."""
    run, since = _run(o, revision.name, stage, meter.number), time(meter.since)
    if run.state not in ALIVE and since is not None:
        longest = deadline(o.spec, stage)  # one that went while nobody looked is taken to have ended by then
        hours = min(longest, max(0.0, ((run.ended or o.now) - since).total_seconds())) / 3600
        scored = grown(d.status.cost.scoring or ScoringCost(), hours, meter.gpus, meter.gpu_hour)
        d = d.set(cost=d.status.cost.model_copy(update={"scoring": scored}))
        meter = meter.model_copy(update={"since": None})
    meters = {**revision.meters, stage: meter}
    return d if meters == revision.meters else d.with_revision(revision.model_copy(update={"meters": meters}))


def _run(o: Observed, revision: str, stage: str, number: int) -> Run:
    return o.run(names.stage_job(o.name, revision, stage, number))


def _accelerators(o: Observed) -> int:
    """Of the pod that scores: its server's, or the one with which the loss is computed."""
    if o.spec.evaluation and o.spec.evaluation.metrics:
        return accelerators(o.spec, profile(o))
    return min(1, o.spec.compute.gpus_each)


def _serving(o: Observed, d: Draft) -> ServingCost | None:
    """Of the pods that all arms are to have; nothing of servers without accelerators, unless the spec has a price for them."""
    serving = o.spec.serving
    if serving is None or not d.arms:
        return None
    count, each = accelerators(o.spec, profile(o)), pod_hour(o)
    if not (count or each):
        return None
    usual = serving.autoscaling.min_replicas if serving.autoscaling else serving.replicas
    pods = sum(o.arms[arm.name].wanted if arm.name in o.arms else usual for arm in d.arms)
    return ServingCost(pods=pods, gpus=pods * count, per_hour=None if each is None else f"{pods * each:.4f}")
