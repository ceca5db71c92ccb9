"""May users outside the cluster call it? Decides which object exposes it, and says why there is none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from finetune_operator import conditions as c
from finetune_operator.api.blocks.serving import Serving
from finetune_operator.api.spec import Spec
from finetune_operator.build import exposure
from finetune_operator.decide.draft import Draft, soonest
from finetune_operator.kinds import Kind
from finetune_operator.observed import Exposure, Observed
from finetune_operator.workloads.run import Waiting

LOOK_AGAIN_SECONDS: Final = 50.0  # for what the cluster lacks: no watch tells that it has come


def asked(spec: Spec) -> Kind | None:
    """The kind of the object that the user asks for."""
    return exposure.kind(spec.serving.expose) if spec.serving and spec.serving.expose else None


def exposed(o: Observed, d: Draft) -> Draft:
    """The object is there while there are routers to call. What it lacks holds nothing else up."""
    kind = asked(o.spec)
    if kind is None or d.routing is None:
        return d
    problem = o.exposures.get(kind.kind, Exposure()).missing or _refused(o.spec.serving, o.ingress_annotations)
    if problem is None:
        return replace(d, exposed=True)
    if problem.reason not in {x.reason for x in o.status.conditions if x.type == c.EXPOSED}:
        d = d.note("Warning", problem.reason, problem.message)
    return replace(d, unexposed=problem, requeue=soonest(d.requeue, LOOK_AGAIN_SECONDS))


def _refused(serving: Serving | None, admitted: Iterable[str]) -> Waiting | None:
    """Annotations steer the controller, for everybody who uses it: which may be set is the administrator's word."""
    ingress = serving.expose.ingress if serving and serving.expose else None
    given = (ingress.annotations or {}) if ingress else {}
    refused = sorted(name for name in given if not any(_admits(entry, name) for entry in admitted))
    if not refused:
        return None
    text = f"serving.expose.ingress.annotations: the operator's setting expose.ingressAnnotations does not list {', '.join(refused)}"
    return Waiting(c.ANNOTATION_REFUSED, f"{text[:700]}: remove what it does not, or have it added to the chart's values")


def _admits(entry: str, name: str) -> bool:
    return name.startswith(entry[:-1]) if entry.endswith("*") else name == entry
