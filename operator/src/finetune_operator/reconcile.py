"""The five verbs, in order: observe, decide, commit the status, build, apply.

Invariant: whatever cannot be derived from children is in the status before a child is made from it; a conflict ends the
cycle. (The volume and the revision's fields follow from the spec alone: they are made beside the commit.) The same status and
spec give the same manifests, byte for byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any, Final, TypeVar

from finetune_operator import conditions, logs, names, plan, status
from finetune_operator.api.load import load_spec
from finetune_operator.api.status import Status
from finetune_operator.apply import Children, NameTaken
from finetune_operator.build.pods import Images, Manifest, Owner
from finetune_operator.cache import Cache
from finetune_operator.clock import Clock
from finetune_operator.cluster import Cluster
from finetune_operator.decide import decide
from finetune_operator.decide.draft import Draft, soonest
from finetune_operator.errors import ClusterError, Conflict, Forbidden, Invalid, NotFound, SpecError
from finetune_operator.events import Events
from finetune_operator.extras import Asked
from finetune_operator.kinds import EXTRAS, FINETUNE, JOB, POD, SERVICE, Kind
from finetune_operator.metrics import Metrics
from finetune_operator.observe import Observer
from finetune_operator.observed import Observed
from finetune_operator.pods import PodClient
from finetune_operator.preflight import StorageClasses
from finetune_operator.prometheus import Prometheus
from finetune_operator.room import fitted, has_room
from finetune_operator.settings import Settings
from finetune_operator.tokens import jwks, sign
from finetune_operator.workloads.run import Waiting

log = logging.getLogger(__name__)
Key = tuple[str, str]
Object = Mapping[str, Any]
T = TypeVar("T")
PROBLEM_RETRY = 15.0  # seconds until a child that could not be made is tried again
SEEN_SECONDS = 1.0  # until what was just made is looked at, to say how it is
CLEANING_RETRY = 3600.0  # the same of the Job that removes what is no longer kept


@dataclass(frozen=True)
class Problem:
    """What kept a cycle from making a child, and from leading users outside to it; by the clock's seconds until when that is not tried
    again, for a webhook that is away takes long to say so."""

    child: Waiting | None = None
    exposure: Waiting | None = None
    until: float = field(default=0.0, compare=False)


NONE: Final = Problem()


@dataclass
class Reconciler:
    """Brings one FineTune a step further at a time; knows nothing between cycles but why a child could not be made."""

    cluster: Cluster
    cache: Cache
    pods: PodClient
    clock: Clock
    settings: Settings
    metrics: Metrics
    events: Events
    signing_key: str
    extras: Asked
    problems: dict[Key, Problem] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """What is remembered between cycles, and of no FineTune."""
        self.storage_classes = StorageClasses(self.cluster, self.clock)
        s = self.settings
        self.prometheus = Prometheus(s.prometheus_url, s.prometheus_authorization, self.clock, s.prometheus_seconds)

    async def reconcile(self, key: Key) -> float | None:
        """One cycle; returns the seconds until the next one is wanted, None when events alone matter."""
        if self.cache.bereft(key):
            self.cache.confirm(key, await self.cluster.get(FINETUNE, *key))
        finetune = self.cache.owner(key)
        if finetune is None:
            self.problems.pop(key, None)
            self.metrics.forget(key)
            return None
        now = self.clock.now()
        if "deletionTimestamp" in finetune["metadata"]:
            finalizers = finetune["metadata"].get("finalizers") or ()
            with contextlib.suppress(NotFound):
                await self._commit(finetune, status.leaving(_status(finetune), _generation(finetune), finalizers, now))
            return None
        try:
            spec = load_spec(finetune)
        except SpecError as error:
            await self._commit(finetune, status.invalid(_status(finetune), _generation(finetune), str(error), now))
            return None
        s, asked = self.settings, (self.storage_classes, self.prometheus, self.extras)
        known = (s.profiles, *asked, s.ingress_annotations, bool(s.vllm_image))
        observer = Observer(self.cluster, self.cache, self.pods, self.signing_key, *known)
        observed, extras = await observer.observe(finetune, spec, now), self._extra_versions(key)
        decision = decide(observed)
        context, children = self._context(observed, decision), Children(self.cluster, self.cache, key, observed.uid)
        before = self.problems.get(key, NONE)
        new = _news(finetune, observed.status, status.compute(observed, decision, before.child, before.exposure))
        beside = partial(_bring, children.ensure, plan.volume(context)), partial(_bring, children.make, plan.fields(context))
        if new is not None:
            finetune, volume, fields = await _all(self._write(finetune, new), *(bring() for bring in beside))
        else:  # nothing to wait for, nearly always: three tasks of asyncio would cost as much as all that
            self.metrics.observe_finetune(finetune)
            volume, fields = [await bring() for bring in beside]
        for note in decision.notes:
            await self.events.emit(finetune, note.type, note.reason, note.message)
        problem = await self._act(context, children, volume or fields, before)
        if problem == NONE:
            self.problems.pop(key, None)
        else:
            self.problems[key] = problem  # before it is told: that may fail
        if problem != before:
            finetune = await self._tell(finetune, observed, decision, problem, now)
        refused = None if volume or fields else await _bring(children.make, plan.cleaning(context))
        if refused:
            await self.events.emit(finetune, "Warning", conditions.CLEANING_FAILED, refused.message)
        made = problem.exposure is None and self._extra_versions(key) != extras  # what the operator itself does no watch tells it
        retries = PROBLEM_RETRY if problem != NONE else None, CLEANING_RETRY if refused else None
        return soonest(decision.requeue, SEEN_SECONDS if made else None, *retries)

    async def _commit(self, finetune: Object, wanted: Status) -> Object:
        """Write the status if it differs, and go on with what the API server made of it."""
        if (new := _news(finetune, _status(finetune), wanted)) is not None:
            return await self._write(finetune, new)
        self.metrics.observe_finetune(finetune)
        return finetune

    async def _write(self, finetune: Object, new: Object) -> Object:
        meta, old = finetune["metadata"], finetune.get("status") or {}
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {k: meta[k] for k in ("name", "namespace", "uid", "resourceVersion")},
            "status": new,
        }
        written = await self.cluster.apply_status(body)
        if new.get("phase") != old.get("phase"):
            log.info(
                "phase",
                extra=logs.of(namespace=meta["namespace"], name=meta["name"], phase=new.get("phase"), reason=new.get("reason")),
            )
        self.cache.put(FINETUNE, written)
        self.metrics.observe_finetune(written)
        return written

    def _context(self, o: Observed, d: Draft) -> plan.Context:
        images = Images(self.settings.trainer_image, self.settings.router_image, self.settings.vllm_image)
        return plan.Context(Owner(o.namespace, o.name, o.uid), o, d, images, partial(jwks, self.signing_key))

    async def _act(self, context: plan.Context, children: Children, problem: Waiting | None, before: Problem) -> Problem:
        """Make the world follow the status; what the API server refuses is told, and what serves is held as wanted all the same."""
        o, d = context.observed, context.draft
        await self._push(o, d)  # first: a rollback waits for no child, and a router that does not know the structure is not told
        for job in d.obsolete:
            await children.remove(JOB, job, foreground=names.cleans(o.name, job))  # what it removes is waited for until no pod can
            await children.remove(SERVICE, job)
        # Before anything is made: what served goes before what is to serve comes.
        kept = await _bring(children.remove, plan.leftovers(context, partial(self._there, children)), beyond_refusals=True)
        if problem is None:  # without its volume no Job starts: what is there under the name may be somebody else's
            problem = await _bring(children.make, plan.once(context))
        problem = await _bring(children.ensure, plan.arms(context), beyond_refusals=True) or problem
        problem = await _bring(children.ensure, plan.routers(context), beyond_refusals=True) or problem
        for pod, version in plan.nudges(context, self.cache.children(POD, children.key)):
            await children.annotate(POD, pod, {names.NUDGE: version})
        if before.exposure and self.clock.monotonic() < before.until:
            return Problem(problem or kept, before.exposure, before.until)
        refused = await self._expose(context, children)
        return Problem(problem or kept, refused, self.clock.monotonic() + PROBLEM_RETRY)

    async def _expose(self, context: plan.Context, children: Children) -> Waiting | None:
        """Let users outside the cluster call; why the API server does not let them. What let them before goes only after that."""

        async def ensure(kind: Kind, manifest: Manifest) -> None:
            try:
                await children.ensure(kind, manifest)
            except NotFound:  # the kind itself may be gone, with its CRD: the next cycle says so
                self.extras.forget(children.key[0])
                raise

        refused = await _bring(ensure, plan.exposure(context))
        return refused or await _bring(children.remove, plan.unexposed(context, partial(self._there, children)))

    def _extra_versions(self, key: Key) -> list[str]:
        """Versions of the children of kinds that few FineTunes have."""
        there = (self.cache.children(kind, key).values() for kind in EXTRAS)
        return [str(obj["metadata"].get("resourceVersion")) for objects in there for obj in objects]

    def _there(self, children: Children, kind: Kind) -> Mapping[str, Object]:
        """The FineTune's children of that kind, by name."""
        return self.cache.children(kind, children.key)

    async def _push(self, o: Observed, d: Draft) -> None:
        """Tell the routers their weights now; one that does not hear it is asked again in the next cycle."""
        if d.routing is None or not d.routing.pushes:
            return
        token = sign(self.signing_key, o.uid, o.now)
        addresses = {r.pod: r.ip for r in o.routers}
        structure = d.routing.structure
        pushes = [self.pods.push(addresses[pod], token, structure, weight) for pod, weight in d.routing.pushes.items()]
        for answer in await asyncio.gather(*pushes, return_exceptions=True):
            if isinstance(answer, Exception):
                log.warning("push failed", extra=logs.of(namespace=o.namespace, name=o.name, error=str(answer)))

    async def _tell(self, finetune: Object, o: Observed, d: Draft, problem: Problem, now: datetime) -> Object:
        """Say why a child could not be made, or that it now can."""
        o = replace(o, status=_status(finetune), now=now)
        finetune = await self._commit(finetune, status.compute(o, d, problem.child, problem.exposure))
        for waits in (problem.child, problem.exposure):
            if waits is not None:
                await self.events.emit(finetune, "Warning", waits.reason, waits.message)
        return finetune


async def _all(commit: Awaitable[Object], *others: Awaitable[Waiting | None]) -> tuple[Any, ...]:
    """The results of what does not depend on each other; none is left half done when another fails."""
    results = await asyncio.gather(commit, *others, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return tuple(results)


async def _bring(
    verb: Callable[[Kind, T], Awaitable[None]], wanted: Iterable[tuple[Kind, T]], *, beyond_refusals: bool = False
) -> Waiting | None:
    """Make, hold or remove these children, in order; why the first that cannot be is not. Those behind it are left, unless told so."""
    problem: Waiting | None = None
    try:
        for kind, child in wanted:
            refusal = await _try(verb, kind, child)
            problem = problem or refusal
            if refusal and not beyond_refusals:
                break
    except SpecError as error:
        return problem or Waiting(conditions.INVALID_SPEC, str(error))
    return problem


async def _try(verb: Callable[[Kind, T], Awaitable[None]], kind: Kind, child: T) -> Waiting | None:
    """Why it cannot be done. What fails of a kind that few need (its webhook is away, say) is no reason to leave the rest undone."""
    try:
        await verb(kind, child)
    except NameTaken as error:
        return error.waiting
    except ClusterError as error:  # a quota and most admission policies say 403
        if isinstance(error, Conflict) or not (kind in EXTRAS or isinstance(error, (Invalid, Forbidden))):
            raise
        return Waiting(conditions.REFUSED, f"the API server refused a child: {error}")
    return None


def _news(finetune: Object, known: Status, wanted: Status) -> Object | None:
    """The status that is to be written, if it differs. `known` is the object's own, as it is read: nearly always it is wanted as it is, and
    one that only lacks a default (an older operator wrote it) means the same."""
    if wanted == known:
        return None
    old, new = finetune.get("status") or {}, wanted.to_dict()
    if new != old and not has_room(new):
        new = fitted(wanted).to_dict()
    return new if new != old else None


def _status(finetune: Object) -> Status:
    return Status.model_validate(finetune.get("status") or {})


def _generation(finetune: Object) -> int:
    return int(finetune["metadata"].get("generation", 0))
