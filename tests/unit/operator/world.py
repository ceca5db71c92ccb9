"""A cluster in memory: an API server that refuses what the real one refuses, a kubelet turned by hand, and an operator to kill.

Nothing here knows how the operator decides: Jobs end as `outcomes` says, model servers are ready unless their image is in
`broken`, routers serve the mounted document and the weights that were pushed to them, and count the requests of `traffic`.
A changed document reaches a router's mount a minute later, or as soon as its pod is nudged. The work volume is the set of folders that
count on it: stages that end well fill it. What cleans it takes a first folder away as soon as it starts, and goes on for GRACE turns when
it is deleted. What a pod needs that is not there is noted in `lacked`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from finetune_operator import errors, kinds, names
from finetune_operator.api.status import Status
from finetune_operator.build.pods import Accelerator
from finetune_operator.build.router import STRUCTURE_PATH
from finetune_operator.cache import Cache
from finetune_operator.cluster import Cluster
from finetune_operator.events import Events
from finetune_operator.extras import Asked
from finetune_operator.kinds import CHILDREN, EXTRAS, FINETUNE, Kind
from finetune_operator.metrics import Metrics
from finetune_operator.observed import Answer, Question
from finetune_operator.pods import PodClient
from finetune_operator.projection import projected
from finetune_operator.prometheus import Prometheus
from finetune_operator.reconcile import Reconciler
from finetune_operator.settings import Settings
from finetune_operator.tokens import generate_key
from finetune_operator.traffic import ArmTotals, RouterState, ServerState, Structure
from finetune_operator.workloads.run import Waiting

Object = dict[str, Any]
Id = tuple[Kind, str, str]
KEY = generate_key()
JOB_NAME, INDEX = "batch.kubernetes.io/job-name", "batch.kubernetes.io/job-completion-index"
TERMINAL = ("Succeeded", "Failed")
GRACE = 3  # turns that a pod takes to end which cleans the volume
SYNC_SECONDS = 60.0  # until a kubelet looks at a mounted ConfigMap again, if nothing else happens to the pod


class Killed(Exception):
    """The operator's process ended right after a write."""


class Stuck(AssertionError):
    """The operator asked for nothing more, or asked for ever, and the goal was not reached."""


class HandClock:
    """Time, turned by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds

    def stamp(self) -> str:
        return self.now().strftime("%Y-%m-%dT%H:%M:%SZ")


class ApiServer:
    """The calls of `Cluster` over a dictionary. `mortal`: how many writes may be made before `Killed`; None: any number."""

    def __init__(self, clock: HandClock) -> None:
        self.clock = clock
        self.store: dict[Id, Object] = {}
        self.version = 0
        self.mortal: int | None = None
        self.refuses: Callable[[Kind, Mapping[str, Any]], bool] = lambda kind, obj: False
        self.writes: list[tuple[str, str, str]] = []  # (verb, kind, name), by the operator
        self.births: dict[tuple[str, str], int] = defaultdict(int)
        self.deaths: dict[tuple[str, str], int] = defaultdict(int)

    # ---- what the operator calls
    async def get(self, kind: Kind, namespace: str | None, name: str) -> Object | None:
        found = self.store.get((kind, namespace or "", name))
        return found and projected(kind, found)

    async def list(
        self, kind: Kind, namespace: str | None = None, label_selector: str = "", field_selector: str = "", *, metadata: bool = False
    ) -> list[Object]:
        return [projected(kind, o) for (k, ns, _), o in self.store.items() if k is kind and namespace in (None, ns)]

    async def create(self, kind: Kind, obj: Mapping[str, Any]) -> Object:
        meta = obj["metadata"]
        if self.refuses(kind, obj):
            raise errors.Invalid(f"exceeded quota: {kind.plural}")
        if (kind, meta["namespace"], meta["name"]) in self.store:
            raise errors.AlreadyExists(f"{kind.kind} {meta['name']} exists")
        made = self.put(kind, obj)
        if kind is not kinds.EVENT:
            self.births[kind.kind, meta["name"]] += 1
        return self._written("create", kind, made)

    async def apply(self, kind: Kind, obj: Mapping[str, Any], *, resource_version: str | None = None) -> Object:
        found = self._found(kind, obj["metadata"])
        if resource_version not in (None, found["metadata"]["resourceVersion"]):
            raise errors.Conflict(f"{kind.kind} {obj['metadata']['name']} was changed")
        merged = _merged(found, {**obj, "metadata": {k: v for k, v in obj["metadata"].items() if k != "resourceVersion"}})
        return self._written("apply", kind, self.change(kind, found, merged))

    async def replace(self, kind: Kind, obj: Mapping[str, Any]) -> Object:
        found = self._found(kind, obj["metadata"])
        if obj["metadata"]["resourceVersion"] != found["metadata"]["resourceVersion"]:
            raise errors.Conflict(f"{kind.kind} {obj['metadata']['name']} was changed")
        return self._written("replace", kind, self.change(kind, found, dict(obj)))

    async def apply_status(self, finetune: Mapping[str, Any]) -> Object:
        meta, status = finetune["metadata"], finetune["status"]
        found = self._found(FINETUNE, meta)
        for key in ("uid", "resourceVersion"):
            if found["metadata"][key] != meta[key]:
                raise errors.Conflict(f"{key} differs")
        assert Status.model_validate(status).to_dict() == status, "the status is not as its schema says"
        assert len(json.dumps(status)) < 64 * 1024
        return self._written("status", FINETUNE, self.change(FINETUNE, found, {**found, "status": status}))

    async def annotate(self, kind: Kind, namespace: str, name: str, annotations: Mapping[str, str]) -> Object:
        found = self._found(kind, {"namespace": namespace, "name": name})
        merged = _merged(found, {"metadata": {"annotations": dict(annotations)}})
        return self._written("annotate", kind, self.change(kind, found, merged))

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str | None = None, foreground: bool = False) -> None:
        found = self.store.get((kind, namespace, name))
        if found is not None and uid in (None, found["metadata"]["uid"]):
            if foreground:
                self._store(kind, {**found, "metadata": {**found["metadata"], "deletionTimestamp": self.clock.stamp()}})
                self._collect(found)
            else:
                self.remove(kind, namespace, name)
            self._written("delete", kind, found)

    # ---- what everybody else does
    def put(self, kind: Kind, obj: Mapping[str, Any]) -> Object:
        """Store a new object."""
        meta = obj["metadata"]
        count = self.births[kind.kind, meta["name"]], self.deaths[kind.kind, meta["name"]]
        uid = meta.get("uid") or hashlib.sha256(f"{kind.kind}/{meta['name']}/{count}".encode()).hexdigest()[:12]
        return self._store(kind, {**obj, "metadata": {**meta, "uid": uid, "generation": 1, "creationTimestamp": self.clock.stamp()}})

    def change(self, kind: Kind, old: Object, new: Object) -> Object:
        """Replace an object; nothing happens when it is the same."""
        if new == old:
            return old
        generation = old["metadata"]["generation"] + (new.get("spec") != old.get("spec"))
        return self._store(kind, {**new, "metadata": {**new["metadata"], "generation": generation}})

    def remove(self, kind: Kind, namespace: str, name: str) -> None:
        """Delete, and collect what belonged to it; pods get their grace first."""
        gone = self.store.pop((kind, namespace, name))
        self.deaths[kind.kind, name] += 1
        self.version += 1
        self._collect(gone)

    def _collect(self, gone: Object) -> None:
        for (k, ns, n), obj in list(self.store.items()):
            if any(o.get("uid") == gone["metadata"]["uid"] for o in obj["metadata"].get("ownerReferences") or ()):
                if k is kinds.POD and obj["status"].get("phase") not in TERMINAL:
                    self._store(k, {**obj, "metadata": {**obj["metadata"], "deletionTimestamp": self.clock.stamp()}})
                else:
                    self.remove(k, ns, n)

    def all(self, kind: Kind) -> Iterable[Object]:
        return [o for (k, _, _), o in self.store.items() if k is kind]

    def _store(self, kind: Kind, obj: Object) -> Object:
        """Objects are never changed in place, so that they may be handed out as they are."""
        self.version += 1
        stored = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.version)}}
        self.store[kind, stored["metadata"].get("namespace", ""), stored["metadata"]["name"]] = stored
        return stored

    def _found(self, kind: Kind, meta: Mapping[str, Any]) -> Object:
        found = self.store.get((kind, meta["namespace"], meta["name"]))
        if found is None:
            raise errors.NotFound(f"{kind.kind} {meta['name']}")
        return found

    def _written(self, verb: str, kind: Kind, obj: Object) -> Object:
        self.writes.append((verb, kind.kind, obj["metadata"]["name"]))
        if self.mortal is not None:
            self.mortal -= 1
            if self.mortal < 0:
                raise Killed
        return projected(kind, obj)


_SERVED = re.compile(r"/work/(revisions/\w+/[\w-]+/artifact)")
_READ = re.compile(r"/work/(revisions/\w+/[\w-]+/artifact|data/\w+)")


def _config(job: Object) -> Object:
    found: Object = json.loads(job["spec"]["template"]["metadata"]["annotations"][names.RUN_CONFIG])
    return found


def _merged(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{k: _merged(old.get(k), v) for k, v in new.items()}}
    return new


@dataclass
class Outcome:
    """How a Job ends: rank 0's exit code and message; `never` runs on until it is deleted."""

    result: Mapping[str, Any] = field(default_factory=dict)
    code: int = 0
    never: bool = False


@dataclass(frozen=True)
class Mount:
    """A router's ConfigMap as last synced, and when."""

    data: Mapping[str, str]
    nudge: str
    time: float


@dataclass
class World:
    """The cluster around the operator."""

    clock: HandClock = field(default_factory=HandClock)
    outcomes: dict[str, list[Outcome]] = field(default_factory=lambda: defaultdict(list))  # by stage; the last one stays
    broken: set[str] = field(default_factory=set)  # images of model servers that never get ready
    failing: Callable[[str], float] = lambda arm: 0.0  # share of requests that an arm fails
    first_token: Callable[[str], float] = lambda arm: 90.0  # milliseconds until an arm's answers begin
    servers_asked: set[str] = field(default_factory=set)
    prometheus: Callable[[Question], Answer] | None = None  # None: the operator knows none
    progress: dict[str, Any] = field(default_factory=dict)
    per_turn: int = 300  # requests to each router
    runtime: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))  # router → version → pushed weight
    totals: dict[str, dict[str, ArmTotals]] = field(default_factory=lambda: defaultdict(dict))
    mounts: dict[str, Mount] = field(default_factory=dict)  # by router
    volume: set[str] = field(default_factory=set)  # data/<revision>, revisions/<revision>/<attempt>/artifact and …/checkpoints
    lacked: list[str] = field(default_factory=list)  # who needed which folder in vain
    cleaning: dict[str, Object] = field(default_factory=dict)  # by Job: what its pods were told to remove
    full: int | None = None  # pods of a Deployment that find room; None: all
    vllm_image: str = "vllm:1"  # the operator's
    lacks: dict[Kind, Waiting] = field(default_factory=dict)  # kinds that the cluster does not know
    leaving: dict[str, int] = field(default_factory=dict)  # by uid of a pod that is to end: turns since

    def __post_init__(self) -> None:
        self.api = ApiServer(self.clock)
        self.api.put(
            kinds.STORAGE_CLASS, {"metadata": {"name": "standard", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}}
        )

    def clone(self) -> World:
        """Another world in the same state (stored objects are never changed in place)."""
        other = World(
            HandClock(), defaultdict(list, {k: list(v) for k, v in self.outcomes.items()}), set(self.broken), self.failing,
            self.first_token, prometheus=self.prometheus,
        )  # fmt: skip
        other.clock.seconds, other.api.store, other.api.version = self.clock.seconds, dict(self.api.store), self.api.version
        other.api.births, other.api.writes = defaultdict(int, self.api.births), list(self.api.writes)
        other.api.deaths = defaultdict(int, self.api.deaths)
        other.mounts, other.volume, other.lacked = dict(self.mounts), set(self.volume), list(self.lacked)
        other.cleaning, other.leaving = dict(self.cleaning), dict(self.leaving)
        for mine, its in ((self.runtime, other.runtime), (self.totals, other.totals)):
            its.update({k: dict(v) for k, v in mine.items()})  # type: ignore[attr-defined]
        return other

    def turn(self) -> None:
        """Let kubelet and controllers go one step further."""
        for pod in list(self.api.all(kinds.POD)):
            if "deletionTimestamp" in pod["metadata"] and not self._goes_on(pod):
                self.api.remove(kinds.POD, pod["metadata"]["namespace"], pod["metadata"]["name"])
        for job in list(self.api.all(kinds.JOB)):
            self._job(job)
        for deployment in list(self.api.all(kinds.DEPLOYMENT)):
            self._deployment(deployment)
        for scaler in list(self.api.all(kinds.HPA)):
            self._scale(scaler)
        self._sync()
        self._traffic()

    def _job(self, job: Object) -> None:
        meta, status = job["metadata"], job.get("status") or {}
        pods = self._pods(meta["uid"])
        if "deletionTimestamp" in meta:
            if not pods:
                self.api.remove(kinds.JOB, meta["namespace"], meta["name"])
            return
        if status.get("conditions"):
            self._close(job)
            return
        if not pods:
            for index in range(job["spec"]["completions"]):
                self._pod(job, f"{meta['name']}-{index}", {JOB_NAME: meta["name"]}, {INDEX: str(index)})
            config = _config(job)
            if config["stage"] in ("train", "evaluate"):
                self._needs(meta["name"], _READ, job["spec"]["template"])
            if config["stage"] == names.CLEAN:
                self.cleaning[meta["name"]] = config["clean"]
                self._clean(config["clean"]["folders"][:1], [])
            return
        queue = self.outcomes[meta["labels"][names.STAGE]]
        outcome = queue[0]
        if outcome.never:
            return
        if len(queue) > 1:
            queue.pop(0)
        config = _config(job)
        for pod in pods:
            self.api.change(kinds.POD, pod, {**pod, "status": self._ended(pod, outcome, config)})
        self._leave(config, pods[0], outcome)
        self._says(job, "FailureTarget" if outcome.code else "Complete")

    def _close(self, job: Object) -> None:
        """The Job controller: a Job that is to fail has failed once its pods have ended."""
        if [c["type"] for c in job["status"]["conditions"]] == ["FailureTarget"]:
            self._says(job, "Failed")

    def _says(self, job: Object, type_: str) -> None:
        condition = {"type": type_, "status": "True", "reason": "PodFailurePolicy", "lastTransitionTime": self.clock.stamp()}
        told = [*job.get("status", {}).get("conditions", ()), condition]
        self.api.change(kinds.JOB, job, {**job, "status": {"conditions": told}})

    def _ended(self, pod: Object, outcome: Outcome, config: Object) -> Object:
        """The pod's last status; what a trainer says depends on its configuration where the contract says so."""
        result = dict(outcome.result)
        if config["stage"] == "evaluate" and not outcome.code:
            result["path"] = config["evaluation"]["path"]
            if "answering" in result:
                result["answering"] = {**result["answering"], **config["evaluation"]["server"]}
        if config["stage"] == "train" and not outcome.code:
            result["artifact"] = f"{config['run']['path']}-{pod['metadata']['uid'][:8]}/artifact"
        ended = {"exitCode": outcome.code, "finishedAt": self.clock.stamp(), "message": json.dumps(result)}
        container = {"name": "trainer", "state": {"terminated": ended}}
        return {"phase": "Failed" if outcome.code else "Succeeded", "containerStatuses": [container]}

    def _leave(self, config: Object, leader: Object, outcome: Outcome) -> None:
        """What the stage has done to the volume."""
        if config["stage"] == "train":
            folder = f"{config['run']['path']}-{leader['metadata']['uid'][:8]}".removeprefix("/work/")
            self.volume |= {f"{folder}/checkpoints"} | (set() if outcome.code else {f"{folder}/artifact"})
        elif config["stage"] == "prepare" and not outcome.code:
            self.volume.add(config["data"]["path"].removeprefix("/work/"))
        elif config["stage"] == names.CLEAN and not outcome.code:
            self._clean(config["clean"]["folders"], config["clean"]["checkpointsOf"])

    def _clean(self, folders: list[str], checkpoints_of: list[str]) -> None:
        gone = {f for f in self.volume if any(f"{f}/".startswith(f"{folder}/") for folder in folders)}
        spent = {f for f in self.volume if f.endswith("/checkpoints") and f.rsplit("/", 2)[0] in checkpoints_of}
        self.volume -= gone | spent

    def _goes_on(self, pod: Object) -> bool:
        """Does a pod that is to end still remove folders? In its last turn it has removed them all."""
        told = self.cleaning.get(pod["metadata"]["labels"].get(JOB_NAME, ""))
        if told is None or pod["status"].get("phase") in TERMINAL:
            return False
        uid = pod["metadata"]["uid"]
        self.leaving[uid] = self.leaving.get(uid, 0) + 1
        if self.leaving[uid] < GRACE:
            return True
        self._clean(told["folders"], told["checkpointsOf"])
        return False

    def _needs(self, who: str, folders: re.Pattern[str], template: Object) -> None:
        missing = set(folders.findall(json.dumps(template))) - self.volume
        self.lacked += [f"{who}: {folder}" for folder in sorted(missing)]

    def _deployment(self, deployment: Object) -> None:
        self._needs(deployment["metadata"]["name"], _SERVED, deployment["spec"]["template"])
        pods = self._pods(deployment["metadata"]["uid"])
        wanted = deployment["spec"]["replicas"] if self.full is None else min(deployment["spec"]["replicas"], self.full)
        taken = {p["metadata"]["name"] for p in pods}
        free = (name for name in (f"{deployment['metadata']['name']}-{index}" for index in itertools.count()) if name not in taken)
        for name in itertools.islice(free, max(0, wanted - len(pods))):
            self._pod(deployment, name, deployment["spec"]["template"]["metadata"]["labels"], {})
        for pod in pods[wanted:]:
            self.api.remove(kinds.POD, pod["metadata"]["namespace"], pod["metadata"]["name"])

    def _scale(self, scaler: Object) -> None:
        """What an autoscaler does whatever the load is."""
        meta, spec = scaler["metadata"], scaler["spec"]
        target = self.api.store.get((kinds.DEPLOYMENT, meta["namespace"], spec["scaleTargetRef"]["name"]))
        if target is not None:
            replicas = max(spec["minReplicas"], min(spec["maxReplicas"], target["spec"]["replicas"]))
            self.api.change(kinds.DEPLOYMENT, target, {**target, "spec": {**target["spec"], "replicas": replicas}})

    def _pod(self, owner: Object, name: str, labels: Mapping[str, str], annotations: Mapping[str, str]) -> None:
        template = owner["spec"]["template"]
        image = template["spec"]["containers"][0]["image"]
        status: Object = {"phase": "Running", "podIP": name, "startTime": self.clock.stamp(), "containerStatuses": []}
        if image in self.broken:
            waits = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
            states = [{"name": "server", "image": image, "state": waits}]
            status = {"phase": "Pending", "startTime": self.clock.stamp(), "containerStatuses": states}
        else:
            status["conditions"] = [{"type": "Ready", "status": "True"}]
        meta = {
            "name": name, "namespace": owner["metadata"]["namespace"], "annotations": dict(annotations),
            "labels": {**template["metadata"].get("labels", {}), **labels},
            "ownerReferences": [{"uid": owner["metadata"]["uid"]}],
        }  # fmt: skip
        self.api.put(kinds.POD, {"metadata": meta, "spec": {"nodeName": "node"}, "status": status})

    def _pods(self, owner: str) -> list[Object]:
        return [p for p in self.api.all(kinds.POD) if any(o["uid"] == owner for o in p["metadata"]["ownerReferences"])]

    # ---- routers
    def served(self, pod: str) -> tuple[str, str | None, int]:
        """(version, canary, weight in force) of a router."""
        document = self._document(pod)
        version, canary = document["version"], document["canary"]
        return version, canary, self.runtime[pod].get(version, document["weight"])

    def _sync(self) -> None:
        """What the kubelet does for the routers' mounts; none for those of pods that are to end."""
        mounts: dict[str, Mount] = {}
        for pod in self.api.all(kinds.POD):
            meta = pod["metadata"]
            if meta["labels"].get(names.COMPONENT) == "router":
                old, nudge = self.mounts.get(meta["name"]), (meta.get("annotations") or {}).get(names.NUDGE, "")
                fresh = old is not None and old.nudge == nudge and self.clock.seconds - old.time < SYNC_SECONDS
                config = self.api.store.get((kinds.CONFIGMAP, "ml", meta["name"].rsplit("-", 1)[0]))
                if config is not None and not fresh and "deletionTimestamp" not in meta:
                    old = Mount(config["data"], nudge, self.clock.seconds)
                if old is not None:
                    mounts[meta["name"]] = old
        self.mounts = mounts

    def _document(self, pod: str) -> Object:
        routes = json.loads(self.mounts[pod].data["rds.json"])["resources"][0]["virtual_hosts"][0]["routes"]
        body = next(r["direct_response"]["body"]["inline_string"] for r in routes if r["match"].get("path") == STRUCTURE_PATH)
        return cast(Object, json.loads(body))

    def _traffic(self) -> None:
        live = self.api.store.get((FINETUNE, "ml", "bot"), {}).get("status", {}).get("liveArm")
        for pod in self.api.all(kinds.POD):
            name = pod["metadata"]["name"]
            if pod["metadata"]["labels"].get(names.COMPONENT) != "router" or pod["status"]["phase"] != "Running" or not live:
                continue
            _, canary, weight = self.served(name)
            shares = {canary: weight, live: 100 - weight} if canary else {live: 100}
            for arm, share in shares.items():
                before, more = self.totals[name].get(arm, ArmTotals()), self.per_turn * share // 100
                requests, failed = before.requests + more, before.errors + round(more * self.failing(arm))
                self.totals[name][arm] = ArmTotals(requests, failed, ((100.0, requests), (math.inf, requests)))

    # ---- what the operator asks of pods
    async def router_state(self, pod: Mapping[str, Any], token: str) -> RouterState:
        name = pod["metadata"]["name"]
        version, _, weight = self.served(name)
        totals = {
            arm: ArmTotals(t.requests, t.errors, t.latency, self._healthy(arm))
            for arm, t in {**{a: ArmTotals() for a in self._arms()}, **self.totals[name]}.items()
        }
        leaving = "deletionTimestamp" in pod["metadata"]
        known = {"version": version, "weight": weight, "totals": totals}
        return RouterState(name, name, pod["status"]["startTime"], ready=not leaving, leaving=leaving, **known)

    async def push(self, ip: str, token: str, structure: Structure, weight: int) -> None:
        self.runtime[ip][structure.version] = weight

    async def server_state(self, pod: Mapping[str, Any], arm: str) -> ServerState:
        """One of two servers, with its half of the arm's answers."""
        name, answers = pod["metadata"]["name"], sum(totals[arm].requests for totals in self.totals.values() if arm in totals) // 2
        self.servers_asked.add(name)
        times = ((self.first_token(arm) / 2, 0.0), (self.first_token(arm), float(answers)), (math.inf, float(answers)))
        return ServerState(name, pod["status"]["startTime"], arm, ArmTotals(first_token=times, output_token=times, answers=answers))

    async def training_progress(self, ip: str) -> dict[str, Any] | None:
        return self.progress or None

    async def missing(self, kind: Kind, namespace: str) -> Waiting | None:
        return self.lacks.get(kind)

    def forget(self, namespace: str) -> None:
        """Whether the kind is there is looked up each time."""

    def _arms(self) -> set[str]:
        labels = (d["metadata"]["labels"] for d in self.api.all(kinds.DEPLOYMENT))
        return {x[names.ARM] for x in labels if names.ARM in x}

    def _healthy(self, arm: str) -> int:
        pods = (p for p in self.api.all(kinds.POD) if p["metadata"]["labels"].get(names.ARM) == arm)
        return sum(1 for p in pods if p["status"].get("conditions"))


class _Pods:
    """The world as `PodClient`."""

    def __init__(self, world: World) -> None:
        self.progress, self.router_state, self.push = world.training_progress, world.router_state, world.push
        self.server_state = world.server_state


@dataclass(frozen=True)
class _Prometheus:
    """The world's as the client."""

    answer: Callable[[Question], Answer]
    url: str = "http://prometheus"

    async def ask(self, key: tuple[str, str], questions: Iterable[Question]) -> tuple[Answer, ...]:
        return tuple(self.answer(question) for question in questions)


class Operator:
    """The real reconciler over the world, with a cache that can be lost; the watch of each kind in `late` is that many cycles behind."""

    def __init__(self, world: World, late: Mapping[Kind, int] | None = None) -> None:
        self.world = world
        self.late = dict(late or {})
        self._told: dict[Kind, list[tuple[list[Object], frozenset[str]]]] = defaultdict(list)
        self.cache = Cache()
        cluster = cast(Cluster, world.api)
        profiles = {"h100": Accelerator("h100", "nvidia.com/gpu")}
        settings = Settings("trainer:1", "router:1", self.world.vllm_image, profiles=profiles, ingress_annotations=("cert-manager.io/*",))
        self.reconciler = Reconciler(
            cluster,
            self.cache,
            cast(PodClient, _Pods(world)),
            world.clock,
            settings,
            Metrics(),
            Events(cluster, world.clock, "test"),
            KEY,
            cast(Asked, world),
        )
        if world.prometheus:
            self.reconciler.prometheus = cast(Prometheus, _Prometheus(world.prometheus))

    def watch(self) -> None:
        """Everything that the watches would have told by now."""
        for kind in (FINETUNE, *CHILDREN, *EXTRAS):
            told = self._told[kind]
            told.append((list(self.world.api.all(kind)), self.cache.uids(kind)))
            if len(told) > self.late.get(kind, 0):
                listed, known = told.pop(0)
                self.cache.fill(kind, [projected(kind, obj) for obj in self.cache.behind(kind, listed)])
                for gone in self.cache.missing(kind, {obj["metadata"]["uid"] for obj in listed}, known):
                    self.cache.drop(kind, gone)

    async def cycle(self) -> float | None:
        self.watch()
        return await self.reconciler.reconcile(("ml", "bot"))


async def run(
    world: World, until: Callable[[Object], bool] | None = None, *, kill: str = "never", cycles: int = 800, start: Operator | None = None
) -> Operator:
    """Let time pass until the status is as wanted, or until nothing moves any more.

    `kill`: `every` ends the operator after each of its writes; `at:N` once, after the write N; another one takes over.
    """
    operator = start or Operator(world)
    world.api.mortal = {"never": None, "every": 0}.get(kill, int(kill[3:]) if kill.startswith("at:") else None)
    for _ in range(cycles):
        before = world.api.version
        requeue: float | None = 1.0
        try:
            requeue = await operator.cycle()
        except Killed:
            operator = Operator(world)
            world.api.mortal = 0 if kill == "every" else None
        except errors.Conflict:
            requeue = 0.2
        world.turn()
        finetune = world.api.store.get((FINETUNE, "ml", "bot"))
        if until and finetune and until(finetune.get("status") or {}):
            world.api.mortal = None
            return operator
        moved = world.api.version != before
        if not moved and requeue is None:
            world.api.mortal = None
            if until:
                raise Stuck(json.dumps((finetune or {}).get("status"), indent=1))
            return operator
        world.clock.seconds += 1.0 if moved else min(requeue or 1.0, 60.0)
    raise Stuck(json.dumps((world.api.store.get((FINETUNE, "ml", "bot")) or {}).get("status"), indent=1))
