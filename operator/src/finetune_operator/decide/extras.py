"""Which kinds does a FineTune have that not every one has? Said before such a child is made, and until none is there.

Else a restarted operator would not look for what an earlier spec asked for.
"""

from __future__ import annotations

from dataclasses import replace

from finetune_operator import conditions as c
from finetune_operator.api.spec import Spec
from finetune_operator.decide.draft import Draft, soonest
from finetune_operator.decide.exposure import LOOK_AGAIN_SECONDS, asked
from finetune_operator.kinds import EXTRAS, HPA, Kind
from finetune_operator.observed import Exposure, Observed


def looked_for(spec: Spec, known: list[str] | None) -> list[Kind]:
    """What the spec asks for, and what was made for an earlier one."""
    return [kind for kind in EXTRAS if kind is asked(spec) or (kind is HPA and scaled(spec)) or kind.kind in (known or ())]


def remembered(o: Observed, d: Draft) -> Draft:
    """The kinds of what is there, and of what is to be. What is to go and cannot be seen is looked for again."""
    kind = asked(o.spec)
    to_be = {kind.kind} if kind and d.exposed else set()
    to_be |= {HPA.kind} if d.arms and scaled(o.spec) else set()
    there = {name for name, seen in o.exposures.items() if seen.there or _may_be_there(o, name, seen)}
    there |= {HPA.kind} if o.autoscaled else set()
    known = sorted(to_be | there) or None
    d = d if known == d.status.extra_kinds else d.set(extra_kinds=known)
    return replace(d, requeue=soonest(d.requeue, LOOK_AGAIN_SECONDS)) if there - to_be else d


def scaled(spec: Spec) -> bool:
    """Are there to be autoscalers of the operator's own?"""
    return spec.serving is not None and spec.serving.autoscaling is not None and spec.serving.autoscaling.autoscaler == "HPA"


def _may_be_there(o: Observed, name: str, seen: Exposure) -> bool:
    """One was made, and may not be looked for any more; without its kind there can be none."""
    return name in (o.status.extra_kinds or ()) and seen.missing is not None and seen.missing.reason != c.GATEWAY_API_MISSING
