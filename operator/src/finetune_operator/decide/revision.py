"""Which revision does the spec ask for? The one whose fields as written are the same, else a new one."""

from __future__ import annotations

import re

from finetune_operator.api.fields import digest
from finetune_operator.api.status import Revision, Stage
from finetune_operator.decide.attempts import halted
from finetune_operator.decide.draft import Draft, stamp
from finetune_operator.observed import Observed


def current(o: Observed, d: Draft) -> Draft:
    """Name the revision; one that is new gets an entry, and training for any other one is superseded."""
    name = _known(o) or digest(dict(o.retrain))
    if d.status.revision != name:
        d = _supersede(o, d, name).set(revision=name)
    if any(r.name == name for r in d.status.revisions):
        return d
    used = _used(o, name) if d.status.revisions else {}
    attempts = max([used.pop("a", 0), *(a.number for a in d.status.attempts if a.revision == name)])
    tries = {stage: number + 1 for stage, number in used.items()}
    return d.with_revision(Revision(name=name, created=stamp(o.now), attempts=attempts, tries=tries))


def _used(o: Observed, name: str) -> dict[str, int]:
    """The highest number by stage (`a`: attempt) of Jobs that a revision has left which was forgotten: they count for nothing any more."""
    jobs = (re.fullmatch(rf"{o.name}-{name}-(?P<stage>[a-z]+)-?(?P<number>\d*)", job) for job in o.runs)
    return dict(sorted((job["stage"], int(job["number"] or 1)) for job in jobs if job))


def _known(o: Observed) -> str | None:
    return next((name for name, kept in o.revisions.items() if kept.get("fields") == o.retrain), None)


def _supersede(o: Observed, d: Draft, name: str) -> Draft:
    """Stop what trains for another revision: its checkpoints stay, so that a revert goes on from them."""
    for attempt in d.status.attempts:
        if attempt.outcome == "Running" and attempt.revision != name:
            d = halted(o, d, attempt, "Superseded")
    stages = [s.model_copy(update={"finished": stamp(o.now)}) if _was_on_the_way(s) else s for s in d.status.stages]
    return d.set(stages=stages, evaluation=None, advice=None)


def _was_on_the_way(stage: Stage) -> bool:
    """A stage before the rollout, which goes on whatever the spec asks for now."""
    return stage.finished is None and stage.name not in ("deploy", "rollout", "bake")
