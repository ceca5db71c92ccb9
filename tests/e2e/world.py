"""The real node under the end-to-end tests: the chart in it, FineTunes, their users, and the audit log.

One node per machine: `installed()` takes a lock, reuses what is up, and takes away only what it brought.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import aiohttp

import devcluster
from demo.address import cluster_ip
from demo.cluster import OPERATOR_NAMESPACE, Cluster, helm, install, node_kubectl
from demo.kube import DemoError, Kubectl
from demo.report import moment
from demo.traffic import Traffic
from devcluster import images, paths
from devcluster.shell import lock

TINY = "image:///opt/models/tiny-random"  # in the trainer image: two random layers, a byte-level tokenizer
RELEASE = "finetune-operator"
NO_PROMETHEUS = "http://prometheus.monitoring:9090"  # nobody answers there
Object = dict[str, Any]
Holds = Callable[[Object], object]


@contextmanager
def installed() -> Iterator[World]:
    """The node with this tree's images and chart; an operator that was there before stays, in this tree's version."""
    with lock("e2e"):
        started = devcluster.ensure_up()
        references = images.ensure()
        kubectl = node_kubectl()
        before = kubectl.get("namespace", OPERATOR_NAMESPACE) is not None
        try:
            install(Cluster("node", kubectl, references), f"prometheus.url={NO_PROMETHEUS}")
            yield World(kubectl, references)
        finally:
            if started:
                devcluster.down()
            elif not before:
                helm(kubectl, "uninstall", RELEASE, "-n", OPERATOR_NAMESPACE, "--ignore-not-found")
                kubectl("delete", "crd", "finetunes.finetune.dev", "--ignore-not-found")
                kubectl("delete", "namespace", OPERATOR_NAMESPACE, "--ignore-not-found")


@dataclass(frozen=True)
class World:
    """A cluster with the operator in it."""

    kubectl: Kubectl
    images: Mapping[str, str]

    @contextmanager
    def namespace(self, name: str) -> Iterator[Space]:
        """A namespace with the restricted pod security standard enforced, removed with the block."""
        self.kubectl.remove_namespace(name, at_once=True)
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        try:
            yield Space(self, name)
        finally:
            self.kubectl.remove_namespace(name, at_once=True)

    def apply(self, manifest: Object) -> None:
        """kubectl apply, server-side."""
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(manifest))


@dataclass(frozen=True)
class Space:
    """A namespace of one test."""

    world: World
    name: str

    def config_map(self, name: str, files: Mapping[str, str]) -> None:
        """A ConfigMap of these files."""
        metadata = {"name": name, "namespace": self.name}
        self.world.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": dict(files)})

    def finetune(self, name: str) -> FineTune:
        """A FineTune that may or may not be there."""
        return FineTune(self, name)


@dataclass(frozen=True)
class FineTune:
    """One FineTune, as a user has it."""

    space: Space
    name: str

    @property
    def labels(self) -> dict[str, str]:
        """What its series and alerts have."""
        return {"namespace": self.space.name, "name": self.name}

    @property
    def kubectl(self) -> Kubectl:
        """kubectl of its cluster."""
        return self.space.world.kubectl

    def apply(self, spec: Object) -> None:
        """kubectl apply of the whole spec."""
        metadata = {"name": self.name, "namespace": self.space.name}
        manifest = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTune", "metadata": metadata, "spec": spec}
        self.space.world.apply(manifest)

    @asynccontextmanager
    async def edited(self, spec: Object) -> AsyncIterator[None]:
        """With that spec while the block lasts, and as before behind it, whatever failed in it: the next test goes on from there."""
        good = self.get()["spec"]
        self.apply(spec)
        try:
            yield
        finally:
            self.apply(good)
        await self.phase("Live", seconds=60)

    def get(self) -> Object:
        """The object; DemoError when there is none."""
        found = self.kubectl.get("-n", self.space.name, "finetune", self.name)
        if found is None:
            raise DemoError(f"there is no FineTune {self.name}")
        return found

    def status(self) -> Object:
        """Its status."""
        return dict(self.get().get("status") or {})

    def children(self, kind: str, selector: str = "") -> list[Object]:
        """Its children of a kind, by name."""
        labels = ",".join(filter(None, (f"finetune.dev/name={self.name}", selector)))
        found = self.kubectl.get("-n", self.space.name, kind, "-l", labels) or {}
        return sorted(found.get("items", []), key=lambda o: str(o["metadata"]["name"]))

    def describe(self) -> str:
        """What a user would look at when something is wrong."""
        parts = ["describe", "finetune", self.name], ["get", "jobs,pods,deployments", "-o", "wide"]
        return "\n".join(self.kubectl("-n", self.space.name, *words) for words in parts)

    async def phase(self, *wanted: str, seconds: float) -> Object:
        """Wait for one of these phases."""
        return await self.until(f"phase {' or '.join(wanted)}", lambda s: s.get("phase") in wanted, seconds=seconds)

    async def until(self, what: str, holds: Holds, *, seconds: float, every: float = 0.5) -> Object:
        """The first status of this generation for which `holds`; AssertionError with `kubectl describe` after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            found = await asyncio.to_thread(self.get)
            status = dict(found.get("status") or {})
            if status.get("observedGeneration") == found["metadata"]["generation"] and holds(status):
                return status
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.name}: no {what} after {seconds:.0f} s\n{self.describe()}")
            await asyncio.sleep(every)

    @asynccontextmanager
    async def users(self, *, every: float = 0.2) -> AsyncIterator[Users]:
        """Users who call the Service without a pause while the block lasts."""
        base = await asyncio.to_thread(cluster_ip, self.kubectl, self.space.name, self.name)
        assert base, "the users' Service is not there"
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as session:
            users = Users(Traffic(session, [base], self.name))
            tasks = [asyncio.create_task(users.call_for_ever(number, every)) for number in range(4)]
            try:
                yield users
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


@dataclass
class Call:
    """One request as its user saw it; times are of the monotonic clock."""

    user: str
    arm: str
    ok: bool
    sent: float
    answered: float
    problem: str


@dataclass
class Users:
    """Fifty users each from four callers; everything they met."""

    traffic: Traffic
    calls: list[Call] = field(default_factory=list)

    async def call_for_ever(self, caller: int, every: float) -> None:
        """One-token completions, user after user."""
        number = 0
        while True:
            user = f"user-{caller}-{number % 50:02d}"
            reply = await self.traffic.one_token(user)
            self.calls.append(Call(user, reply.arm, reply.ok, reply.sent, time.monotonic(), reply.problem))
            number += 1
            await asyncio.sleep(every)

    @property
    def failed(self) -> list[Call]:
        """Requests without a good answer."""
        return [call for call in self.calls if not call.ok]

    def arms(self, since: float = 0.0) -> set[str]:
        """Arms that answered requests sent since then."""
        return {call.arm for call in self.calls if call.ok and call.sent >= since}


def condition(status: Object, type_: str) -> Object:
    """A condition by its type; {} without one."""
    return next((c for c in status.get("conditions") or [] if c["type"] == type_), {})


def audit(since: datetime) -> list[Object]:
    """Audit entries of writes that succeeded since then."""
    entries = []
    for line in paths.audit_log().read_text().splitlines():
        entry = json.loads(line)
        if entry["verb"] not in ("get", "list", "watch") and moment(entry["requestReceivedTimestamp"]) >= since:
            entries.append(entry)
    return entries


def labelled_rows(count: int) -> str:
    """JSONL: `count` distinct prompts, all with the same short answer; anything learns it."""
    prompts = (f"Ticket {number}: the printer on floor {number % 7} is broken." for number in range(count))
    return "".join(json.dumps({"prompt": prompt, "completion": "hardware"}) + "\n" for prompt in prompts)


def spec(source: str = "configmap://rows/train.jsonl", **changes: Any) -> Object:
    """A small FineTune of the tiny model; keyword arguments replace whole blocks (None removes one)."""
    base: Object = {
        "model": {"source": TINY},
        "data": {"train": {"source": source}},
        "method": {"type": "LoRA"},
        "training": {"epochs": 4, "learningRate": "1e-2", "maxSequenceLength": 256, "checkpoint": {"everySteps": 20}},
        "compute": {"nodes": 1, "cpu": "100m", "memory": "2Gi"},
        "storage": {"size": "1Gi"},
        "serving": {"replicas": 1, "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}}},
        "rollout": {
            "steps": [{"weight": 10, "hold": "3s"}, {"weight": 50, "hold": "3s"}, {"weight": 100, "hold": "2s"}],
            "guards": {"maxErrorRatePercent": 2, "maxLatencyRegressionPercent": 1000, "minRequests": 0},
            "bake": "3s",
            "progressDeadline": "120s",
        },
    }
    return {k: v for k, v in {**base, **changes}.items() if v is not None}
