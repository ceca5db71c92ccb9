"""A kubelet by hand on a real API server: one node, volumes, pods that run and end as `outcomes` says, routers that answer.

Nothing runs in the pods. Their addresses are loopback ones, so that a training rank can say its progress and a router
its document, weights and counters; a router's mount follows its ConfigMap when the pod is nudged, never before.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import traceback
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache, partial
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from finetune_operator import errors, kinds, names, projection
from finetune_operator.build.router import INFERENCE, STRUCTURE_PATH
from finetune_operator.cluster import Cluster, Page
from finetune_operator.kinds import Kind

from devcluster import loopback
from tests.unit.operator.helpers import good_outcomes
from tests.unit.operator.world import Outcome

Object = dict[str, Any]
NODE = Kind("", "v1", "nodes", "Node", namespaced=False)
VOLUME = Kind("", "v1", "persistentvolumes", "PersistentVolume", namespaced=False)
MERGE = "application/merge-patch+json"
TURN_SECONDS = 0.15
HEARTBEAT_SECONDS = 8.0
TERMINAL = ("Succeeded", "Failed")
ERRORS = (errors.ClusterError,)


def stamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Admin(Cluster):
    """The administrator: reads all of an object, also patches, and the status of what it likes."""

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Object | None:
        return await super().get(whole(kind), namespace, name)

    def pages(self, kind: Kind, *where: Any, **how: Any) -> AsyncIterator[Page]:
        return super().pages(whole(kind), *where, **how)

    async def patch(
        self, kind: Kind, namespace: str | None, name: str, body: Any, subresource: str = "", *, content: str = MERGE, **query: str
    ) -> Object:
        path = kind.path(namespace, name) + (f"/{subresource}" if subresource else "")
        return await self._request("PATCH", path, partial(projection.read, whole(kind)), query=query, body=body, content=content)

    async def remove(self, kind: Kind, namespace: str, name: str) -> None:
        """Delete at once, as a kubelet does once a pod's containers have ended."""
        await self._request("DELETE", kind.path(namespace, name), bytes, query={"gracePeriodSeconds": "0"})

    async def _write(self, verb: str, method: str, kind: Kind, path: str, body: Mapping[str, Any], *, merge: bool = False) -> Object:
        return await super()._write(verb, method, whole(kind), path, body, merge=merge)


@cache
def whole(kind: Kind) -> Kind:
    """The same, of which the operator's projection knows nothing."""
    return replace(kind)


@dataclass
class Router:
    """What Envoy would answer on a router pod's address."""

    document: Mapping[str, Any]
    nudge: str
    fails: Callable[[str], bool] = lambda arm: False  # do the requests to this arm fail?
    runtime: dict[str, str] = field(default_factory=dict)
    answered: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))  # by arm and class of the answer

    def applications(self) -> dict[int, web.Application]:
        async def structure(_: web.Request) -> web.Response:
            return web.json_response(self.document)

        async def runtime(_: web.Request) -> web.Response:
            return web.json_response({"entries": {k: {"final_value": v} for k, v in self.runtime.items()}})

        async def modify(request: web.Request) -> web.Response:
            self.runtime |= dict(request.query)
            return web.Response()

        async def statistics(_: web.Request) -> web.Response:
            for arm in self.document["arms"]:
                self.answered[arm, "5" if self.fails(arm) else "2"] += 100
            return web.Response(text="".join(self._counters()))

        traffic, control, metrics = web.Application(), web.Application(), web.Application()
        traffic.add_routes([web.get(STRUCTURE_PATH, structure)])
        control.add_routes([web.get("/runtime", runtime), web.post("/runtime_modify", modify)])
        metrics.add_routes([web.get("/stats/prometheus", statistics)])
        return {names.TRAFFIC_PORT: traffic, names.CONTROL_PORT: control, names.ROUTER_METRICS_PORT: metrics}

    def _counters(self) -> list[str]:
        """A hundred quick requests to each arm whenever it is asked, and one of nobody."""
        self.answered["", "2"] += 1
        lines = [f'envoy_cluster_upstream_rq_xx{{envoy_cluster_name="anonymous",envoy_response_code_class="2"}} {self.answered["", "2"]}\n']
        for arm in self.document["arms"]:
            label, good, bad = f'envoy_cluster_name="{INFERENCE}_{arm}"', self.answered[arm, "2"], self.answered[arm, "5"]
            count = good + bad
            lines += [
                f"envoy_cluster_membership_healthy{{{label}}} 1\n",
                f"envoy_cluster_upstream_cx_protocol_error{{{label}}} 0\n",
                f'envoy_cluster_upstream_rq_xx{{{label},envoy_response_code_class="2"}} {good}\n',
                f'envoy_cluster_upstream_rq_xx{{{label},envoy_response_code_class="5"}} {bad}\n',
                f'envoy_cluster_upstream_rq_time_bucket{{{label},le="100"}} {count}\n',
                f'envoy_cluster_upstream_rq_time_bucket{{{label},le="+Inf"}} {count}\n',
            ]
        return lines


@contextlib.asynccontextmanager
async def repeating(turn: Callable[[], Awaitable[None]], seconds: float) -> AsyncIterator[None]:
    """A turn, a pause, and again while the block lasts; the last one comes to its end: a cancelled request leaves its socket open."""
    ended = asyncio.Event()

    async def turns() -> None:
        while not ended.is_set():
            try:
                await turn()
            except ERRORS:
                pass  # the API server is away, or somebody else was quicker: look again
            except Exception:
                traceback.print_exc()  # at once: who waits for what it does not do any more would wait in vain, and see nothing of this
                raise
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), seconds)

    task = asyncio.create_task(turns())
    try:
        yield
    finally:
        ended.set()
        await task


class Kubelet:
    """Serves the nodes of a control plane, by default one, while the `async with` block lasts.

    `beats`: whether they say that they live; a node monitor with enough patience needs none of it.
    """

    def __init__(self, admin: Admin, nodes: Sequence[Object] = (), *, beats: bool = True) -> None:
        self.admin = admin
        self.nodes = nodes or (node("node", {"cpu": "64", "memory": "256Gi", "pods": "500", "ephemeral-storage": "1Ti"}),)
        self.beats = beats
        self.outcomes: dict[str, dict[str, list[Outcome]]] = defaultdict(good_outcomes)  # namespace → stage → how its Jobs end
        self.progress: dict[str, Any] = {}
        self.images: Callable[[str], bool] = lambda image: True  # can it be pulled?
        self.fails: Callable[[str, str], bool] = lambda namespace, arm: False  # do the requests to this arm fail?
        self.grace = 0.0  # seconds that the containers of a deleted pod take to end
        self._leaving: dict[str, float] = {}
        self._addresses: dict[str, str] = {}
        self._routers: dict[str, Router] = {}
        self._runners: dict[str, list[web.AppRunner]] = defaultdict(list)
        self._gangs: dict[tuple[str, str], set[str]] = {}  # namespace and Job → ranks that have begun, ended ones too
        self._beat = 0.0
        self._turns = repeating(self._turn, TURN_SECONDS)

    async def __aenter__(self) -> Self:
        there = {made["metadata"]["name"] for made in await self.admin.list(NODE)}
        missing = [made for made in self.nodes if made["metadata"]["name"] not in there]
        await asyncio.gather(*(self.admin.create(NODE, made) for made in missing))
        with contextlib.suppress(errors.AlreadyExists):
            await self.admin.create(kinds.STORAGE_CLASS, storage_class("standard", default=True))
        await self._turns.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._turns.__aexit__(kind, error, trace)
        for uid in list(self._runners):
            await self._silence(uid)

    async def _turn(self) -> None:
        now = asyncio.get_running_loop().time()
        if self.beats and now - self._beat > HEARTBEAT_SECONDS:
            self._beat = now
            for made in self.nodes:
                await self.admin.patch(NODE, None, made["metadata"]["name"], {"status": {"conditions": [_lives()]}}, "status")
        for claim in await self.admin.list(kinds.PVC):
            if not claim["spec"].get("volumeName") and claim["spec"].get("storageClassName"):
                with contextlib.suppress(errors.AlreadyExists):
                    await self.admin.create(VOLUME, _volume(claim))
        pods = await self.admin.list(kinds.POD, label_selector=names.SELECTOR)
        self._gangs = _begun(pods)
        for pod in pods:
            with contextlib.suppress(*ERRORS):
                await (self._pod(pod) if pod["spec"].get("nodeName") else self._touch_claims(pod))

    async def _touch_claims(self, pod: Object) -> None:
        """Let the scheduler hear once more of claims that are bound. Its queue hears of that before its cache of claims does: a pod that
        is tried in between fails on the old state, and would be tried again after five minutes."""
        said = [c.get("message") or "" for c in pod["status"].get("conditions") or () if c["type"] == "PodScheduled"]
        if any("unbound immediate PersistentVolumeClaims" in message for message in said):
            meta = pod["metadata"]
            for volume in pod["spec"].get("volumes") or ():
                if claim := volume.get("persistentVolumeClaim"):
                    touched = {"metadata": {"annotations": {"integration.test/touched": stamp()}}}
                    await self.admin.patch(kinds.PVC, meta["namespace"], claim["claimName"], touched)

    async def _pod(self, pod: Object) -> None:
        meta, phase = pod["metadata"], pod["status"].get("phase")
        if "deletionTimestamp" in meta:
            now = asyncio.get_running_loop().time()
            if phase == "Running" and now - self._leaving.setdefault(meta["uid"], now) < self.grace:
                return
            if phase not in TERMINAL:
                await self._status(pod, self._ended(pod, Outcome(code=143)))
            await self._silence(meta["uid"])
            await self.admin.remove(kinds.POD, meta["namespace"], meta["name"])
        elif phase == "Pending":
            await self._start(pod)
        elif phase == "Running" and (stage := meta["labels"].get(names.STAGE)):
            await self._go_on(pod, stage)
        elif phase == "Running" and meta["uid"] in self._routers:
            await self._sync(pod)

    async def _start(self, pod: Object) -> None:
        meta, container = pod["metadata"], pod["spec"]["containers"][0]
        if not self.images(container["image"]):
            waits = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
            await self._status(pod, {"containerStatuses": [_container(pod, waits)]})
            return
        number = len(self._addresses)
        address = self._addresses.setdefault(meta["uid"], f"{loopback.network()}.{number // 200}.{number % 200 + 1}")
        await self._serve(meta["uid"], address, await self._applications(pod))
        ready = [{"type": t, "status": "True", "lastTransitionTime": stamp()} for t in ("Ready", "ContainersReady", "Initialized")]
        running = _container(pod, {"running": {"startedAt": stamp()}}, ready=True)
        await self._status(
            pod,
            {
                "phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "startTime": stamp(), "conditions": ready,
                "containerStatuses": [running],
            },
        )  # fmt: skip

    async def _applications(self, pod: Object) -> Mapping[int, web.Application]:
        """What answers on the pod's address, by port."""
        meta, labels = pod["metadata"], pod["metadata"]["labels"]
        if labels.get(names.COMPONENT) == "router":
            document, nudge = await self._document(pod)
            router = self._routers[meta["uid"]] = Router(document, nudge, partial(self.fails, meta["namespace"]))
            return router.applications()
        if labels.get(names.STAGE) == "train" and labels.get("batch.kubernetes.io/job-completion-index") == "0":
            return {names.PROGRESS_PORT: self._progress(pod)}
        return {}

    async def _go_on(self, pod: Object, stage: str) -> None:
        """End a stage's pod as the next outcome says; all ranks of a Job end alike, the last outcome stays.

        A rank that trains gets past the rendezvous once all have begun: one that had ended would hold no machine for the others.
        """
        if stage == "train" and len(self._gangs[_job(pod)]) < run_config(pod)["compute"]["nodes"]:
            return
        queue = self.outcomes[pod["metadata"]["namespace"]][stage]
        if queue[0].never:
            return
        await self._status(pod, self._ended(pod, queue[0]))
        await self._silence(pod["metadata"]["uid"])
        rank = pod["metadata"]["labels"].get("batch.kubernetes.io/job-completion-index")
        if len(queue) > 1 and rank == "0":
            queue.pop(0)

    def _ended(self, pod: Object, outcome: Outcome) -> Object:
        if names.STAGE not in pod["metadata"]["labels"]:
            return {"phase": "Succeeded", "containerStatuses": [_container(pod, _terminated(0, ""))]}
        config = run_config(pod)
        result = dict(outcome.result)
        if config["stage"] == "evaluate" and not outcome.code:
            result["path"] = config["evaluation"]["path"]
        if config["stage"] == "train" and not outcome.code:
            result["artifact"] = f"{config['run']['path']}-{pod['metadata']['uid'][:8]}/artifact"
        ended = _terminated(outcome.code, json.dumps(result) if result else "")
        return {"phase": "Failed" if outcome.code else "Succeeded", "containerStatuses": [_container(pod, ended)]}

    async def _status(self, pod: Object, status: Object) -> None:
        meta = pod["metadata"]
        kept = [c for c in pod["status"].get("conditions") or () if c["type"] in ("PodScheduled", "DisruptionTarget")]
        status = {**status, "conditions": [*kept, *status.get("conditions", ())]}
        await self.admin.patch(kinds.POD, meta["namespace"], meta["name"], {"metadata": {"uid": meta["uid"]}, "status": status}, "status")

    async def _sync(self, pod: Object) -> None:
        router = self._routers[pod["metadata"]["uid"]]
        if (pod["metadata"].get("annotations") or {}).get(names.NUDGE, "") != router.nudge:
            router.document, router.nudge = await self._document(pod)

    async def _document(self, pod: Object) -> tuple[Object, str]:
        """The structure in the mounted ConfigMap, with the arms that have clusters, and the nudge at which it was read."""
        meta = pod["metadata"]
        volume = next(v for v in pod["spec"]["volumes"] if "configMap" in v)
        config = await self.admin.get(kinds.CONFIGMAP, meta["namespace"], volume["configMap"]["name"])
        assert config is not None, "a router is made after its ConfigMap"
        routes = json.loads(config["data"]["rds.json"])["resources"][0]["virtual_hosts"][0]["routes"]
        body = next(r["direct_response"]["body"]["inline_string"] for r in routes if r["match"].get("path") == STRUCTURE_PATH)
        clusters = [c["name"] for c in json.loads(config["data"]["cds.json"])["resources"]]
        arms = [c.partition("_")[2] for c in clusters if c.startswith(f"{INFERENCE}_")]
        return {**json.loads(body), "arms": arms}, (meta.get("annotations") or {}).get(names.NUDGE, "")

    def said(self, pod: Object) -> Object:
        """What rank 0 answers when it is asked how far it is."""
        return self.progress

    def _progress(self, pod: Object) -> web.Application:
        async def progress(_: web.Request) -> web.Response:
            return web.json_response(self.said(pod))

        app = web.Application()
        app.add_routes([web.get("/progress", progress)])
        return app

    async def _serve(self, uid: str, address: str, applications: Mapping[int, web.Application]) -> None:
        if self._runners[uid]:
            return
        for port, app in applications.items():
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, address, port).start()
            self._runners[uid].append(runner)

    async def _silence(self, uid: str) -> None:
        self._routers.pop(uid, None)
        for runner in self._runners.pop(uid, []):
            await runner.cleanup()


def run_config(pod: Object) -> Object:
    """What a stage's pod is configured with."""
    return dict(json.loads(pod["metadata"]["annotations"][names.RUN_CONFIG]))


def _job(pod: Object) -> tuple[str, str]:
    return pod["metadata"]["namespace"], pod["metadata"]["labels"].get(names.JOB_NAME, "")


def _begun(pods: Iterable[Object]) -> dict[tuple[str, str], set[str]]:
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for pod in pods:
        if pod["status"].get("phase") != "Pending":
            found[_job(pod)].add(pod["metadata"]["labels"].get(names.JOB_INDEX, ""))
    return found


def storage_class(name: str, *, default: bool = False) -> Object:
    """A StorageClass whose volumes this kubelet makes."""
    annotations = {"storageclass.kubernetes.io/is-default-class": "true"} if default else {}
    metadata = {"name": name, "annotations": annotations}
    return {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": metadata, "provisioner": "by-hand"}


def node(name: str, capacity: Mapping[str, str], labels: Mapping[str, str] | None = None, taints: Sequence[Object] = ()) -> Object:
    """A node that is ready."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}},
        "spec": {"taints": list(taints)},
        "status": {"capacity": dict(capacity), "allocatable": dict(capacity), "conditions": [_lives()]},
    }


def _lives() -> Object:
    return {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": stamp(), "lastTransitionTime": stamp()}


def _volume(claim: Object) -> Object:
    meta, spec = claim["metadata"], claim["spec"]
    return {
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": f"pv-{meta['uid']}"},
        "spec": {
            "capacity": spec["resources"]["requests"], "accessModes": spec["accessModes"], "storageClassName": spec["storageClassName"],
            "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": "/nowhere"},
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **{k: meta[k] for k in ("name", "namespace", "uid")}},
        },
    }  # fmt: skip


def _container(pod: Object, state: Object, *, ready: bool = False) -> Object:
    container = pod["spec"]["containers"][0]
    return {
        "name": container["name"], "image": container["image"], "imageID": "", "ready": ready, "restartCount": 0, "state": state,
    }  # fmt: skip


def _terminated(code: int, message: str) -> Object:
    reason = "Completed" if code == 0 else "Error"
    return {"terminated": {"exitCode": code, "reason": reason, "message": message, "startedAt": stamp(), "finishedAt": stamp()}}
