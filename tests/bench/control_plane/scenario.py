"""One measured run on a fresh control plane: one by one, burst, idle, restart, a new object after a restart, a small burst, delete."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from devcluster.controlplane import ControlPlane
from tests.bench.control_plane import processes
from tests.bench.control_plane.adapters import Adapter
from tests.bench.control_plane.api import Api, pooled
from tests.bench.control_plane.audit import AuditLog, Tally
from tests.bench.control_plane.cluster import OPERATOR, Operator
from tests.bench.control_plane.progress import Progress
from tests.bench.control_plane.recorder import Recorder
from tests.bench.control_plane.statistics import spread

Result = dict[str, Any]
BACKGROUND: Final = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
SAMPLE_SECONDS: Final = 0.25
SWEEP: Final = "FINETUNE_SWEEP_SECONDS"


@dataclass(frozen=True)
class Sizes:
    """How many, and for how long."""

    objects: int
    beside: int = 100  # a second, smaller burst while all of them are there
    live: int = 50  # that serve, and as many that train
    singles: int = 20
    single_seconds: float = 0.5  # between two of them
    idle_seconds: float = 20.0
    restart_seconds: float = 60.0
    quiet_seconds: float = 5.0  # without a write: settled
    rest_seconds: float = 3.0  # with next to no CPU: at rest
    limit_seconds: float = 1800.0

    @property
    def names(self) -> list[str]:
        return [f"b{number:05d}" for number in range(self.objects)]


@dataclass
class Scenario:
    """The run's pieces, and its phases in their order."""

    plane: ControlPlane
    api: Api
    adapter: Adapter
    sizes: Sizes
    progress: Progress
    operator: Operator | None
    sent: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.audit = AuditLog(self.plane.audit_log)
        self.recorder = Recorder(self.api, self.adapter)
        self.result: Result = {"objects": self.sizes.objects}  # phase by phase

    async def run(self) -> None:
        """Every phase; the restarts only where there is an operator."""
        await self._begin()
        self._step("singles")
        await self._some(["w0", "w1", "w2", "w3"], 0.0)  # warm up
        self.result["singles"] = await self._some([f"s{n:03d}" for n in range(self.sizes.singles)], self.sizes.single_seconds)
        self.result["burst"] = await self._burst()
        if self.operator:
            self.result["idle"] = await self._idle()
            self.result["restart"] = await self._restart(self.operator)
            self.result["gap"] = await self._gap(self.operator)
            self.result["beside"] = await self._beside()
        self.result["delete"] = await self._delete()
        self.result["surplus"] = {name: kind.surplus for name, kind in self.recorder.children.items()}
        await self.recorder.stop()

    async def run_idle(self, operator: Operator) -> None:
        """Only what N settled objects cost: without sweeps, and with many."""
        operator.settings[SWEEP] = "86400"
        await self._begin()
        self.result["burst"] = await self._burst()
        self.result["idle"] = await self._idle()
        operator.settings[SWEEP] = str(self.sizes.idle_seconds / 2)
        self.result["sweeps"] = await self._sweeps(operator)
        await self.recorder.stop()

    async def _begin(self) -> None:
        if self.operator:
            self.operator.start()
            await self.operator.working()
        await self.recorder.start()

    async def _some(self, names: Sequence[str], pause: float) -> Result:
        """A few at a fixed pace, so that none waits for another; removed again."""
        due = time.monotonic()
        for name in names:
            await asyncio.sleep(due - time.monotonic())
            due += pause
            await self._create(name)
        await self._all_complete(names)
        result = self._latencies(names)
        await self._settle(self.audit.position())
        await self._remove(names)
        await self._settle(self.audit.position())
        return result

    async def _burst(self) -> Result:
        self._step("burst")
        names = self.sizes.names
        await self.api.warm()
        cpu, position, begin = self._cpu(), self.audit.position(), time.monotonic()
        own, machine = time.process_time(), processes.machine_seconds()
        await pooled(names, self._create)
        created = time.monotonic() - begin
        await self._all_complete(names)
        ours = sum(self._cpu_since(cpu).values()) + time.process_time() - own
        others = (processes.machine_seconds() - machine - ours) / (time.monotonic() - begin)
        tally, settled = await self._settle(position)
        return {
            **self._latencies(names), "created_seconds": created, "settled_seconds": settled - begin, "others_cores": others,
            "cpu": self._cpu_since(cpu), "calls": tally.summary(), "peak_mib": self._peaks(),
        }  # fmt: skip

    async def _idle(self) -> Result:
        self._step("idle")
        return await self._idling()

    async def _idling(self) -> Result:
        cpu, position, begin = self._cpu(), self.audit.position(), time.monotonic()
        await self._while_telling(self.sizes.idle_seconds)
        calls = self.audit.tally(position).summary()
        return {"seconds": time.monotonic() - begin, "cpu": self._cpu_since(cpu), "calls": calls, "peak_mib": self._peaks()}

    async def _sweeps(self, operator: Operator) -> Result:
        """Idling of an operator that was started anew, once it rests."""
        self._step("sweeps")
        await self._bounce(operator)
        await operator.working()
        while True:
            samples = await self._while_telling(self.sizes.rest_seconds)
            if samples[-1][1] - samples[0][1] < processes.BUSY * self.sizes.rest_seconds:
                return await self._idling()

    async def _restart(self, operator: Operator) -> Result:
        """The operator starts anew with every object settled; what it does in the time that follows."""
        self._step("restart")
        position = self.audit.position()
        stopped = await self._bounce(operator)
        samples = await self._while_telling(self.sizes.restart_seconds)
        cpu = samples[-1][1]
        calls = self.audit.tally(position).summary()
        return {
            "stop_seconds": stopped, "cpu": {OPERATOR: cpu}, "steady_seconds": processes.last_busy(samples), "calls": calls,
            "peak_mib": self._peaks(),
        }  # fmt: skip

    async def _gap(self, operator: Operator) -> Result:
        """From SIGTERM until an object that is made at once afterwards has its children."""
        self._step("gap")
        begin, name = time.monotonic(), "gap"
        stopped = await self._bounce(operator)
        await self._create(name)
        await self._all_complete([name])
        came = {kind: seen.came[name] - begin for kind, seen in self.recorder.children.items()}
        return {"stop_seconds": stopped, **came}

    async def _beside(self) -> Result:
        """A burst beside all that are there and settled; removed again."""
        self._step("beside")
        await self._settle(self.audit.position())
        there, cpu, names = self.recorder.left(), self._cpu(), [f"x{number:05d}" for number in range(self.sizes.beside)]
        await pooled(names, self._create)
        await self._all_complete(names)
        result = {"objects": len(names), **self._latencies(names), "cpu": self._cpu_since(cpu)}
        await pooled(names, self._remove_one)
        await self._until(lambda: there - self.recorder.left(), 0)
        return result

    async def _delete(self) -> Result:
        self._step("delete")
        await self._settle(self.audit.position())
        await self.api.warm()
        cpu, position, begin, total = self._cpu(), self.audit.position(), time.monotonic(), self.recorder.left()
        await pooled(sorted(self.recorder.parents.came.keys() & {*self.sizes.names, "gap"}), self._remove_one)
        accepted = time.monotonic() - begin
        await self._until(lambda: total - self.recorder.left(), total)
        kinds = {"parents": self.recorder.parents, **self.recorder.children}
        gone = {name: kind.gone_at - begin for name, kind in kinds.items()}
        tally, _ = await self._settle(position)
        return {
            "accepted_seconds": accepted, "gone_seconds": gone, "cpu": self._cpu_since(cpu), "calls": tally.summary(),
            "peak_mib": self._peaks(),
        }  # fmt: skip

    async def _bounce(self, operator: Operator) -> float:
        """End it and start it again: the seconds until the old one had ended."""
        begin = time.monotonic()
        await operator.end()
        stopped = time.monotonic() - begin
        operator.start()
        return stopped

    async def _create(self, name: str) -> None:
        self.sent[name] = time.monotonic()
        await self.api.call("POST", self.adapter.collection, self.adapter.make(name))

    async def _remove_one(self, name: str) -> None:
        await self.api.call("DELETE", f"{self.adapter.collection}/{name}", BACKGROUND)

    async def _remove(self, names: Sequence[str]) -> None:
        await pooled(names, self._remove_one)
        await self._until(lambda: -self.recorder.left(), 0)

    async def _all_complete(self, names: Sequence[str]) -> None:
        await self._until(lambda: self.recorder.complete(names), len(names))

    async def _until(self, done: Callable[[], int], total: int) -> None:
        begin = time.monotonic()
        while (so_far := done()) < total:
            self._check(begin)
            self.progress.tell(so_far, total)
            await asyncio.sleep(0.05)

    async def _settle(self, position: int) -> tuple[Tally, float]:
        """Wait until nobody has written anything but Leases for a while: what was asked since the position, and the last write's time."""
        tally, begin = Tally(), time.monotonic()
        last = begin
        while time.monotonic() - last < self.sizes.quiet_seconds:
            entries, position = self.audit.entries(position)
            for entry in entries:
                last = time.monotonic() if tally.add(entry) else last
            self._check(begin)
            self.progress.tell()
            await asyncio.sleep(0.5)
        return tally, last

    async def _while_telling(self, seconds: float) -> list[tuple[float, float]]:
        """Let time pass: (time, the operator's CPU seconds), sampled meanwhile."""
        begin, samples = time.monotonic(), []
        while (now := time.monotonic()) - begin < seconds:
            samples.append((now, processes.cpu_seconds(self.plane.pids[OPERATOR])))
            self._check(begin)
            self.progress.tell(int(now - begin), int(seconds))
            await asyncio.sleep(SAMPLE_SECONDS)
        return samples

    def _check(self, begin: float) -> None:
        self.recorder.check()
        self.plane.check()
        if time.monotonic() - begin > self.sizes.limit_seconds:
            raise TimeoutError(
                f"{self.adapter.name}: not done after {self.sizes.limit_seconds:.0f} s; {self.recorder.left()} objects are there"
            )

    def _step(self, name: str) -> None:
        self.progress.step(f"{self.adapter.name}: {name}")

    def _cpu(self) -> dict[str, float]:
        return {name: processes.cpu_seconds(pid) for name, pid in self.plane.pids.items()}

    def _cpu_since(self, before: dict[str, float]) -> dict[str, float]:
        return {name: used - before[name] for name, used in self._cpu().items()}

    def _peaks(self) -> dict[str, float]:
        return {name: processes.peak_mib(pid) for name, pid in self.plane.pids.items()}

    def _latencies(self, names: Sequence[str]) -> Result:
        first = min(self.sent[name] for name in names)
        return {
            kind: {
                "seconds": spread([seen.came[name] - self.sent[name] for name in names]),
                "wall": max(seen.came[n] for n in names) - first,
            }
            for kind, seen in self.recorder.children.items()
        }
