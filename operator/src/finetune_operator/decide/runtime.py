"""Is there an image of what is to serve? Asked before anything is fetched, and not of a revision that has passed its gate."""

from __future__ import annotations

from finetune_operator import conditions
from finetune_operator.api.spec import Spec
from finetune_operator.build import arm, runconfig
from finetune_operator.decide.draft import Draft
from finetune_operator.observed import Observed


def image(o: Observed, d: Draft) -> Draft:
    """Has the operator the image of vLLM, where that serves, or answers what a metric asks?"""
    if d.blocked or o.vllm or d.revision.gate or d.revision.promoted or not _needed(o.spec):
        return d
    return d.block(conditions.FAILED, arm.no_vllm(o.spec), reason=conditions.NO_VLLM_IMAGE)


def _needed(spec: Spec) -> bool:
    return arm.uses_vllm(spec) and (spec.serving is not None or runconfig.metrics(spec) != runconfig.LOSS_ALONE)
