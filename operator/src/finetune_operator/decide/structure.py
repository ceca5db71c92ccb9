"""What must the routers serve? The document that they boot from, but for the weight."""

from __future__ import annotations

from typing import Final

from finetune_operator.api.blocks.rollout import Identity
from finetune_operator.api.fields import digest
from finetune_operator.api.status import Rollout
from finetune_operator.build import arm as arms
from finetune_operator.build.pods import Owner
from finetune_operator.decide.draft import Draft
from finetune_operator.decide.stages import BASE
from finetune_operator.observed import Observed
from finetune_operator.traffic import Backend, Source, Structure

DEFAULT_IDENTITY: Final = (Identity(header="x-user-id"),)


def structure_of(o: Observed, d: Draft, running: Rollout | None) -> Structure:
    """Of what is live, and of the rollout if one is running."""
    live, revision = d.status.live_arm or "", d.status.live_revision or BASE
    salt = digest({"uid": o.uid, "live": live}, 16)
    canary = _backend(o, running.arm, running.revision) if running else None
    identity = o.spec.rollout.identity or DEFAULT_IDENTITY
    sources = tuple(Source(i.header or "", i.body_field or "") for i in identity)
    return Structure(_backend(o, live, revision), canary, salt, sources, str(running.memory.get("created", "")) if running else "")


def _backend(o: Observed, name: str, revision: str) -> Backend:
    kept = o.templates.get(name)
    ready = "/readyz"
    if kept:
        ready = kept["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]["path"]
    elif arms.runtime(o.spec) == "vLLM" and not (o.spec.serving and o.spec.serving.image):
        ready = "/health"
    return Backend(name, arms.host(Owner(o.namespace, o.name, o.uid), name), revision, ready)
