"""Children, pods, progress and routers → one frozen `Observed`.

Reads the cache; asks the API server only for what the cache does not hold (what a stage that has not begun needs, Events of
a volume that cannot be mounted, pods whose end the watch has not told while it has told their Job's), and pods only while
something moves.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from finetune_operator import autoscalers, conditions, exposures, kinds, names, preflight
from finetune_operator.api.fields import REDEPLOY, REEVALUATE, RETRAIN, digest, extract
from finetune_operator.api.spec import Spec
from finetune_operator.api.status import Revision, Status
from finetune_operator.build.pods import Accelerator
from finetune_operator.cache import Cache
from finetune_operator.cluster import Cluster
from finetune_operator.decide.arms import router_moves
from finetune_operator.decide.extras import looked_for
from finetune_operator.decide.guards import asks_servers
from finetune_operator.decide.queries import questions
from finetune_operator.decide.rollout.states import ACTIVE, GUARDED
from finetune_operator.extras import Asked
from finetune_operator.observed import Answer, ArmHealth, Exposure, Observed
from finetune_operator.pods import PodClient
from finetune_operator.prometheus import Prometheus
from finetune_operator.tokens import sign
from finetune_operator.traffic import RouterState, ServerState
from finetune_operator.workloads.endings import fall
from finetune_operator.workloads.jobs import begun, held, lacking, leftovers, read_run, untold
from finetune_operator.workloads.objects import condition, time
from finetune_operator.workloads.pods import ready, restarts
from finetune_operator.workloads.run import GANG_SECONDS, Run, Waiting
from finetune_operator.workloads.waiting import stuck_since, waiting

MOUNT_PATIENCE = 60.0  # seconds that a scheduled pod may wait before its Events are read
UNMOUNTED = ("FailedAttachVolume", "FailedMount")  # what is said of a volume's node, and of the volume on it
MOUNT_SAID_SECONDS = 300.0  # a kubelet that cannot mount a volume says so every two minutes or so
_LACKS = re.compile(r'\b(secret|configmap) "[^"]*" not found', re.IGNORECASE)
SCALE_UPS = ("TriggeredScaleUp", "Nominated")  # what the Cluster Autoscaler and Karpenter say of a pod that they make room for
SERVERS_ASKED = 8  # of an arm: their counters are kept in the status while a step lasts
REFUSED_AGAIN_SECONDS = 900.0  # a Job controller that is refused a pod goes on saying so, every five minutes at least
PODS_PATIENCE = 10.0  # seconds that a Job may be without a pod of its own before its Events are read

Object = Mapping[str, Any]


@dataclass(frozen=True)
class Observer:
    """Takes snapshots. `signing_key` is the PEM that the routers trust."""

    cluster: Cluster
    cache: Cache
    pods: PodClient
    signing_key: str
    profiles: Mapping[str, Accelerator]
    storage_classes: preflight.StorageClasses
    prometheus: Prometheus
    extras: Asked
    ingress_annotations: tuple[str, ...] = ()
    vllm: bool = True

    async def observe(self, finetune: Object, spec: Spec, now: datetime) -> Observed:
        """The FineTune's snapshot; ClusterError when the API server cannot be asked."""
        meta = finetune["metadata"]
        key = (meta["namespace"], meta["name"])
        annotations = meta.get("annotations") or {}
        status = Status.model_validate(finetune.get("status") or {})
        jobs, pods = dict(self.cache.children(kinds.JOB, key)), dict(self.cache.children(kinds.POD, key))
        runs = {name: await self._run(job, pods.values(), now) for name, job in jobs.items()}
        runs = {name: await self._with_events(run, jobs[name], pods, now) for name, run in runs.items()}
        runs |= leftovers(jobs, pods.values(), now)
        stages = {name: run for name, run in runs.items() if not names.cleans(key[1], name)}
        router_pods = [p for p in pods.values() if _component(p) == "router"]
        retrain = extract(finetune["spec"], Spec, RETRAIN)
        revisions, templates = self._kept(key)
        moves = router_moves(status) or (status.rollout is not None and status.rollout.state in ACTIVE)
        asked = self._traffic(finetune, pods.values(), router_pods, spec, status, now) if moves else None
        routers, servers, answers = await asked if asked else ((), (), ())
        lacking = {kind: await self.extras.missing(kind, key[0]) for kind in looked_for(spec, status.extra_kinds)}
        return Observed(
            namespace=key[0],
            name=key[1],
            uid=meta["uid"],
            generation=int(meta.get("generation", 0)),
            spec=spec,
            status=status,
            retrain=retrain,
            redeploy=extract(finetune["spec"], Spec, REDEPLOY),
            reevaluate=extract(finetune["spec"], Spec, REEVALUATE),
            asked={"spec": _acted_on(finetune["spec"]), "retry": annotations.get(names.RETRY, "")},
            now=now,
            control=annotations.get(names.CONTROL, ""),
            revisions=revisions,
            templates=templates,
            profiles=self.profiles,
            runs=runs,
            missing=await self._missing(status, spec, key[0], retrain, stages),
            progress=await self._progress(stages),
            arms=self._arms(key, pods, now),
            routers=routers,
            servers=servers,
            answers=answers,
            prometheus=bool(self.prometheus.url),
            vllm=self.vllm,
            routers_wanted=self._routers_wanted(key),
            ingress_annotations=self.ingress_annotations,
            exposures={k.kind: self._exposure(k, key, missing) for k, missing in lacking.items() if k in kinds.EXPOSURES},
            autoscaled=bool(self.cache.children(kinds.HPA, key))
            or (lacking.get(kinds.HPA) is not None and kinds.HPA.kind in (status.extra_kinds or ())),
            routers_starting=any(_starts(p) for p in router_pods),
            router_waiting=await self._router_waiting(router_pods, now),
        )

    def _routers_wanted(self, key: tuple[str, str]) -> int:
        """Pods of the routers; none without the ConfigMap that they mount."""
        name = names.router(key[1])
        there = name in self.cache.children(kinds.CONFIGMAP, key)
        return _replicas(self.cache.children(kinds.DEPLOYMENT, key).get(name)) if there else 0

    def _exposure(self, kind: kinds.Kind, key: tuple[str, str], missing: Waiting | None) -> Exposure:
        """What exposes it; nothing is known where objects of that kind cannot be listed."""
        child = self.cache.children(kind, key).get(names.users_service(key[1]))
        return Exposure(missing=missing) if missing else exposures.read(kind, child)

    def _kept(self, key: tuple[str, str]) -> tuple[dict[str, Mapping[str, Any]], dict[str, Mapping[str, Any]]]:
        revisions: dict[str, Mapping[str, Any]] = {}
        templates: dict[str, Mapping[str, Any]] = {}
        for obj in self.cache.children(kinds.CONTROLLER_REVISION, key).values():
            name = obj["metadata"]["labels"].get(names.REVISION, "")
            (templates if _component(obj) == "arm" else revisions)[name] = obj.get("data") or {}
        return revisions, templates

    async def _missing(self, status: Status, spec: Spec, namespace: str, retrain: Object, runs: Mapping[str, Run]) -> dict[str, Waiting]:
        """What the stages that may start now need and have not, by stage; not asked while a Job is under way."""
        if any(r.state in ("Running", "Waiting") for r in runs.values()):
            return {}
        stages = _starting(_newest(status, digest(dict(retrain))), runs)
        found = {stage: await preflight.missing(self.cluster, self.storage_classes, namespace, spec, stage) for stage in stages}
        return {stage: waits for stage, waits in found.items() if waits}

    async def _progress(self, runs: Mapping[str, Run]) -> dict[str, Mapping[str, Any]]:
        addresses = {name: run.leader_ip for name, run in runs.items() if run.state == "Running" and run.leader_ip}
        if not addresses:
            return {}
        answers = await asyncio.gather(*(self.pods.progress(ip) for ip in addresses.values()))
        return {name: answer for name, answer in zip(addresses, answers, strict=True) if answer}

    async def _traffic(
        self, finetune: Object, pods: Iterable[Object], routers: list[Object], spec: Spec, status: Status, now: datetime
    ) -> tuple[tuple[RouterState, ...], tuple[ServerState, ...], tuple[Answer, ...]]:
        """What routers, servers and the user's own queries say while a rollout moves."""
        meta = finetune["metadata"]
        return await asyncio.gather(
            self._routers(routers if router_moves(status) else [], meta["uid"], now),
            self._servers(pods, status if asks_servers(spec.rollout.guards) else Status()),
            self._answers((meta["namespace"], meta["name"]), spec, status, now),
        )

    async def _routers(self, pods: list[Object], uid: str, now: datetime) -> tuple[RouterState, ...]:
        asked = [p for p in pods if _asked(p, leaving=True)]
        token = sign(self.signing_key, uid, now) if asked else ""
        states = await asyncio.gather(*(self.pods.router_state(p, token) for p in asked))
        return tuple(sorted(states, key=lambda s: s.pod))

    async def _servers(self, pods: Iterable[Object], status: Status) -> tuple[ServerState, ...]:
        """Both arms' servers while users move; of a large arm some, which stand for the others."""
        r = status.rollout
        moving = (r.arm, r.stable) if r and r.state in ACTIVE else ()
        arms = {arm: sorted((p for p in pods if _arm(p) == arm and _asked(p)), key=_name)[:SERVERS_ASKED] for arm in moving}
        return tuple(await asyncio.gather(*(self.pods.server_state(p, arm) for arm, mine in arms.items() for p in mine)))

    async def _answers(self, key: tuple[str, str], spec: Spec, status: Status, now: datetime) -> tuple[Answer, ...]:
        """What the user's own queries say while users move, and before: one that cannot be asked is to be known then."""
        guarded = status.rollout is not None and status.rollout.state in GUARDED
        return await self.prometheus.ask(key, [*questions(spec.rollout.guards, status, *key, now)] if guarded else [])

    def _arms(self, key: tuple[str, str], pods: Mapping[str, Object], now: datetime) -> dict[str, ArmHealth]:
        found, scalers = {}, self.cache.children(kinds.HPA, key)
        for name, obj in self.cache.children(kinds.DEPLOYMENT, key).items():
            arm = obj["metadata"]["labels"].get(names.ARM)
            if arm:
                mine = [p for p in pods.values() if _arm(p) == arm]
                found[arm] = replace(_health(obj, mine, now), needed=autoscalers.needed(scalers[name]) if name in scalers else None)
        return found

    async def _run(self, job: Object, pods: Iterable[Object], now: datetime) -> Run:
        """The run by the cached pods; by the API server's own when these are behind the Job."""
        if untold(job, pods, now):
            meta = job["metadata"]
            pods = await self.cluster.list(kinds.POD, meta["namespace"], f"{names.JOB_NAME}={meta['name']}")
        return read_run(job, pods, now)

    async def _with_events(self, run: Run, job: Object, pods: Mapping[str, Object], now: datetime) -> Run:
        """The run with what Events alone tell: pods that the API server refuses to the Job, volumes that cannot be mounted."""
        if run.held > GANG_SECONDS and await self._scales(job):
            return replace(run, held=0.0)
        if run.state != "Waiting" or run.waiting or run.suspended:
            return run
        mine = [p for p in pods.values() if p["metadata"]["labels"].get(names.JOB_NAME) == run.name]
        stuck = [p["metadata"]["name"] for p in mine if stuck_since(p, now) > MOUNT_PATIENCE]
        if stuck:
            return await self._unmounted(run, job, mine, stuck, now)
        if lacking(job, mine) and _age(job, now) > PODS_PATIENCE and (said := await self._events(job, run.name, "FailedCreate")):
            refused = Waiting(conditions.REFUSED, f"the pods of Job {run.name} are refused: {said[-1]['message']}")
            began = now - timedelta(seconds=begun(job, now))
            since = max(began, _said_since(said) or began)  # a pod that is to take the place of another one is not late from the start
            waited = replace(run.waited, schedule=(now - since).total_seconds())
            return replace(run, waiting=refused, waited=waited, held=held(mine, now, refused=since))
        return run

    async def _unmounted(self, run: Run, job: Object, pods: list[Object], stuck: list[str], now: datetime) -> Run:
        """The run with what keeps the first of those pods from its volumes: another node that has one comes first, for of that the kubelet
        says no more than that it waits. Where it was said a moment ago, the machines that the other pods of the gang have are held in vain;
        else it may merely pull a large image."""
        for name in stuck:
            events = [event for reason in UNMOUNTED if (event := await self._last_of(job, name, reason))]
            fresh = [event for event in events if _since(event.get("lastTimestamp"), now) < MOUNT_SAID_SECONDS]
            if said := (fresh or events)[:1]:
                waits = _not_mounted(name, str(said[0]["message"]))
                if not fresh and waits.reason != conditions.MOUNT_FAILED:
                    continue  # a kubelet goes on saying so: it is there by now
                return replace(run, waiting=waits, held=held(pods, now, stuck) if fresh else run.held)
        return run

    async def _router_waiting(self, pods: list[Object], now: datetime) -> Waiting | None:
        """What keeps a router from running: a volume that cannot be mounted, as that of a Secret, its Events alone tell."""
        known = next((w for w in (waiting(p, now) for p in pods) if w), None)
        stuck = next((p for p in pods if stuck_since(p, now) > MOUNT_PATIENCE), None)
        if known or stuck is None:
            return known
        found = await self._last_event(stuck, _name(stuck), "FailedMount")
        return _not_mounted(_name(stuck), found) if found else None

    async def _scales(self, job: Object) -> bool:
        """Has an autoscaler said that it makes room for a pod of the Job?"""
        meta = job["metadata"]
        found = [
            e for reason in SCALE_UPS for e in await self.cluster.list(kinds.EVENT, meta["namespace"], field_selector=f"reason={reason}")
        ]
        return any(str(e["involvedObject"].get("name", "")).startswith(f"{meta['name']}-") for e in found)

    async def _last_event(self, beside: Object, name: str, reason: str) -> str:
        """What the last one says of an object of that name in the namespace of another one; empty if there is none."""
        event = await self._last_of(beside, name, reason)
        return str(event["message"]) if event else ""

    async def _last_of(self, beside: Object, name: str, reason: str) -> Object | None:
        return next(reversed(await self._events(beside, name, reason)), None)

    async def _events(self, beside: Object, name: str, reason: str) -> list[Object]:
        """Of that object, the last one last."""
        selector = f"involvedObject.name={name},reason={reason}"
        events = await self.cluster.list(kinds.EVENT, beside["metadata"]["namespace"], field_selector=selector)
        return sorted(events, key=lambda e: str(e.get("lastTimestamp") or ""))


def _not_mounted(pod: str, said: str) -> Waiting:
    """Why a pod's volume is not there, by its kubelet's Event."""
    lacks = _LACKS.search(said)
    missing = {"secret": conditions.SECRET_MISSING, "configmap": conditions.SOURCE_MISSING}
    reason = missing[lacks[1].lower()] if lacks else conditions.MOUNT_FAILED
    return Waiting(reason, f"pod {pod}: {said}; it starts by itself once that is there")


def _said_since(events: list[Object]) -> datetime | None:
    """Since when these have gone on saying so, the last one last: what was said long before the next one is over."""
    since: datetime | None = None
    for event in reversed(events):
        first, last = time(event.get("firstTimestamp")), time(event.get("lastTimestamp"))
        if since and last and (since - last).total_seconds() > REFUSED_AGAIN_SECONDS:
            break
        since = min((at for at in (since, first or last) if at), default=None)
    return since


def _since(text: str | None, now: datetime) -> float:
    moment = time(text)
    return (now - moment).total_seconds() if moment else 0.0


def _age(obj: Object, now: datetime) -> float:
    return _since(obj["metadata"].get("creationTimestamp"), now)


def _component(obj: Object) -> str:
    return str(obj["metadata"]["labels"].get(names.COMPONENT, ""))


def _arm(obj: Object) -> str:
    return str(obj["metadata"]["labels"].get(names.ARM, ""))


def _name(obj: Object) -> str:
    return str(obj["metadata"]["name"])


def _replicas(deployment: Object | None) -> int:
    return int(deployment["spec"].get("replicas", 1)) if deployment else 0


def _acted_on(spec: Object) -> Object:
    """The spec without what is only told, and without the replicas, which an autoscaler sets: an edit of these is no reason to try again
    what failed or was rejected."""
    acted_on = {name: block for name, block in spec.items() if name != "economics"}
    serving = spec.get("serving")
    return {**acted_on, "serving": {k: v for k, v in serving.items() if k != "replicas"}} if serving else acted_on


def _starts(pod: Object) -> bool:
    return pod.get("status", {}).get("phase") == "Pending" and "deletionTimestamp" not in pod["metadata"]


def _asked(pod: Object, *, leaving: bool = False) -> bool:
    """A router or server that can answer: it runs and nobody deletes it. A router that goes, and is still ready, has users too until
    they have left it: it is told the weights, and nobody waits for it."""
    status = pod.get("status", {})
    stays = "deletionTimestamp" not in pod["metadata"] or (leaving and condition(pod, "Ready") is not None)
    return status.get("phase") == "Running" and bool(status.get("podIP")) and stays


def _health(deployment: Object, pods: list[Object], now: datetime) -> ArmHealth:
    current = [p for p in pods if "deletionTimestamp" not in p["metadata"]]
    return ArmHealth(
        wanted=_replicas(deployment),
        ready=sum(1 for p in current if ready(p)),
        pods=len(current),
        restarts=sum(restarts(p) for p in current),
        waiting=next((w for w in (waiting(p, now) for p in current) if w), None),
        fall=max((fell for p in current if (fell := fall(p))), key=lambda fell: fell.at, default=None),
    )


def _newest(status: Status, name: str) -> Revision | None:
    return next((r for r in status.revisions if r.name == name), None)


def _starting(revision: Revision | None, runs: Mapping[str, Run]) -> list[str]:
    """The next stage without a result; where a Job was just seen to succeed all of them, for one may start in this very cycle."""
    if revision is None:
        return ["fetch"]
    if revision.promoted or revision.gate == "NotNeeded":
        return []
    results = {
        "fetch": revision.model_digest, "prepare": revision.data_digest, "baseline": revision.baseline, "evaluate": revision.evaluated,
    }  # fmt: skip
    to_come = [stage for stage, result in results.items() if result is None]
    return to_come if any(r.state == "Succeeded" for r in runs.values()) else to_come[:1]
