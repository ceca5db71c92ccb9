"""What FineTunes cost that train and that serve: of each kind one is led there, and copied while the operator and the controllers stand
still. Then the operator starts, finds copies, and is started again once all are settled."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from finetune_operator import kinds, names
from finetune_operator.kinds import Kind

from devcluster.controlplane import ControlPlane
from tests.bench.control_plane import copies, memory, processes
from tests.bench.control_plane.adapters import NAMESPACE, SOURCE
from tests.bench.control_plane.api import Api, pooled
from tests.bench.control_plane.audit import AuditLog
from tests.bench.control_plane.cluster import OPERATOR, Operator
from tests.bench.control_plane.machine import Machine
from tests.bench.control_plane.progress import Progress
from tests.bench.control_plane.scenario import Result, Sizes
from tests.integration.engine import administrator
from tests.integration.kubelet import TURN_SECONDS
from tests.unit.operator.helpers import make_spec
from tests.unit.operator.world import Outcome

Object = dict[str, Any]
CONTROLLERS: Final = "controller-manager"
PATIENCE_SECONDS: Final = 120.0
RESTART_SECONDS: Final = 8.0
IDLE_SECONDS: Final = 10.0
ROLLOUT: Final = {
    "steps": [{"weight": 10, "hold": "1s"}, {"weight": 50, "hold": "1s"}, {"weight": 100}], "bake": "1s", "progressDeadline": "10m",
    "guards": {"minRequests": 50},
}  # fmt: skip
LIVE, TRAINING = "Live", "Training"


def finetune(name: str) -> Object:
    """One that trains in one pod and serves from one."""
    source = {"train": {"source": f"configmap://{SOURCE}/train.jsonl"}}
    spec = make_spec(compute={"nodes": 1}, data=source, serving={"replicas": 1}, rollout=ROLLOUT)
    return {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}


@dataclass
class Lives:
    """The run's pieces, and its phases in their order."""

    plane: ControlPlane
    api: Api
    sizes: Sizes
    progress: Progress
    operator: Operator

    def __post_init__(self) -> None:
        self.audit = AuditLog(self.plane.audit_log)
        self.result: Result = {"objects": self.sizes.live}

    async def run(self) -> None:
        """One life, then restarts with next to nothing, with those that live, and with as many that train beside them."""
        self.progress.step("lives: one life")
        self.operator.start()
        await self.operator.working()
        async with administrator(self.plane) as admin, Machine(admin) as machine:
            self.result["life"] = await self._life()
            machine.outcomes[NAMESPACE]["train"] = [Outcome(never=True)]
            await self._lead("train00000", TRAINING)
            await self._alone(machine)
            self.result["few"] = {"restart": await self._restart()}
            for state, model in (("live", "live00000"), ("training", "train00000")):
                self.progress.step(f"lives: {state}")
                objects = await self._objects(model)
                self.result[f"{state}_cache_kib"] = memory.cache_kib(objects, model)
                await self._copies(machine, objects, model)
                self.result[state] = {"idle": await self._idle(), "restart": await self._restart()}
                await self._alone(machine)

    async def _life(self) -> Result:
        cpu, position = processes.cpu_seconds(self.plane.pids[OPERATOR]), self.audit.position()
        await self._lead("live00000", LIVE)
        await asyncio.sleep(self.sizes.quiet_seconds)
        used, calls = processes.cpu_seconds(self.plane.pids[OPERATOR]) - cpu, self.audit.tally(position).summary()
        return {"cpu": {OPERATOR: used}, "calls": calls, "phases": [phase for name, phase in self._phases() if name == "live00000"]}

    async def _lead(self, name: str, phase: str) -> None:
        await self.api.call("POST", kinds.FINETUNE.path(NAMESPACE), finetune(name))
        await self._until_all([name], phase)

    async def _until_all(self, wanted: Sequence[str], phase: str) -> None:
        begin = time.monotonic()
        while {name for name in wanted if dict(self._phases()).get(name) == phase} != {*wanted}:
            self.plane.check()
            self.progress.tell()
            if time.monotonic() - begin > PATIENCE_SECONDS:
                raise TimeoutError(f"lives: not {phase} after {PATIENCE_SECONDS:.0f} s: {Counter(dict(self._phases()).values())}")
            await asyncio.sleep(0.2)

    def _phases(self) -> list[tuple[str, str]]:
        """(FineTune, phase) of each change, as the operator logged them."""
        lines = (line for line in self.operator.log.read_text().splitlines() if '"event": "phase"' in line)
        return [(told["name"], told["phase"]) for told in map(json.loads, lines)]

    async def _alone(self, machine: Machine) -> None:
        """Let the machine and the controllers stand still: they would make pods for the copies, and delete those that are nobody's."""
        machine.rests = True
        os.kill(self.plane.pids[CONTROLLERS], signal.SIGSTOP)
        await asyncio.sleep(2 * TURN_SECONDS)

    async def _copies(self, machine: Machine, objects: dict[Kind, list[Object]], model: str) -> None:
        """Make them, and let the operator settle what it finds: each has a uid, and so a routers' document, of its own."""
        await self.operator.end()
        names = copies.numbered(model.rstrip("0123456789"), self.sizes.live - 1, first=1)
        await pooled(names, partial(self._copy, objects, model))
        machine.rests = False
        self.operator.start()
        await self.operator.working()
        await self._settled()

    async def _settled(self) -> None:
        """Wait until the routers run and nobody has written anything but Leases for a while."""
        begin, writes = time.monotonic(), 1
        while writes or await self._pending():
            position = self.audit.position()
            await self._sampled(self.sizes.quiet_seconds)
            writes = sum(calls["writes"] for calls in self.audit.tally(position).summary().values())
            if time.monotonic() - begin > PATIENCE_SECONDS:
                raise TimeoutError(f"lives: not settled after {PATIENCE_SECONDS:.0f} s, with {writes} writes in the last few")

    async def _pending(self) -> bool:
        path = kinds.POD.path(NAMESPACE) + "?fieldSelector=status.phase%3DPending"
        return bool((await self.api.list_metadata(path))[0])

    async def _idle(self) -> Result:
        cpu, position = processes.cpu_seconds(self.plane.pids[OPERATOR]), self.audit.position()
        await self._sampled(IDLE_SECONDS)
        used = processes.cpu_seconds(self.plane.pids[OPERATOR]) - cpu
        return {"seconds": IDLE_SECONDS, "cpu": {OPERATOR: used}, "calls": self.audit.tally(position).summary()}

    async def _restart(self) -> Result:
        position = self.audit.position()
        await self.operator.end()
        self.operator.start()
        samples = await self._sampled(RESTART_SECONDS)
        return {
            "cpu": {OPERATOR: samples[-1][1]}, "steady_seconds": processes.last_busy(samples),
            "calls": self.audit.tally(position).summary(),
            "peak_mib": {OPERATOR: processes.peak_mib(self.plane.pids[OPERATOR])},
        }  # fmt: skip

    async def _objects(self, name: str) -> dict[Kind, list[Object]]:
        """The FineTune of that name and its children, whole."""
        query = f"?labelSelector={names.NAME}%3D{name}"
        listed = {kind: await self.api.call("GET", kind.path(NAMESPACE) + query) for kind in copies.OWNERS_FIRST[1:]}
        own = await self.api.call("GET", kinds.FINETUNE.path(NAMESPACE, name))
        return {kinds.FINETUNE: [own], **{kind: found["items"] for kind, found in listed.items()}}

    async def _copy(self, objects: dict[Kind, list[Object]], model: str, name: str) -> None:
        words = {model: name}
        for kind in copies.OWNERS_FIRST:
            for obj in objects[kind]:
                wanted = copies.renamed(obj, words)
                made = await self.api.call("POST", kind.path(NAMESPACE), copies.postable(kind, wanted))
                words[obj["metadata"]["uid"]] = made["metadata"]["uid"]
                if kind in copies.WITH_STATUS and not _routes(made):
                    path = kind.path(NAMESPACE, made["metadata"]["name"]) + "/status"
                    await self.api.call("PUT", path, {**made, "status": wanted["status"]})
        self.progress.tell()

    async def _sampled(self, seconds: float) -> list[tuple[float, float]]:
        """(time, the operator's CPU seconds) while time passes."""
        begin, samples = time.monotonic(), list[tuple[float, float]]()
        while (now := time.monotonic()) - begin < seconds:
            samples.append((now, processes.cpu_seconds(self.plane.pids[OPERATOR])))
            self.plane.check()
            self.progress.tell()
            await asyncio.sleep(0.25)
        return samples


def _routes(obj: Object) -> bool:
    """Is it a router's pod? The machine starts these anew, so that each serves its own document."""
    return obj["kind"] == kinds.POD.kind and obj["metadata"]["labels"].get(names.COMPONENT) == "router"
