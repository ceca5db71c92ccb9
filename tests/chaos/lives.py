"""A FineTune's full life under an operator that is disturbed, and how its end is judged by that of an undisturbed one.

train → every attempt that is to fail fails, and is tried again → gate → rollout → promotion → an edit, whose revision trains,
passes its gate and is rolled back, for it answers its users with errors → deletion.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from finetune_operator import errors
from finetune_operator.kinds import FINETUNE

from devcluster.controlplane import ControlPlane
from tests.chaos.nodes import Nodes
from tests.chaos.process import Mortal
from tests.chaos.proxy import Call, Proxy
from tests.integration.engine import ACCOUNT, NAMESPACE, Space, administrator, install

Object = dict[str, Any]
GUARDS: Final = {"minRequests": 50, "maxErrorRatePercent": 2}
ROLLOUT: Final = {"steps": [{"weight": 20, "hold": "1s"}, {"weight": 100}], "bake": "1s", "progressDeadline": "5m", "guards": GUARDS}
FAILURES: Final = [["outOfMemory"], ["disruption", "infrastructure", "stalled"]]
LIFE_SECONDS: Final = 150.0
AGREE_SECONDS: Final = 60.0
QUIET_SECONDS: Final = 4.0
# What may differ between two lives that went the same way: times, their cost, and what traffic showed at the moment it was looked at.
TIMES: Final = {
    "began", "cost", "created", "eta", "etaSeconds", "evidence", "finished", "lastDecision", "lastTransitionTime", "memory", "nextStepAt",
    "phaseSince", "started", "time", "tried", "updated",
}  # fmt: skip
VARYING: Final = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)"), "TIME"),
    (re.compile(r"(/a\d+)-[0-9a-f]{8}"), r"\1-UID"),
    (re.compile(r"(-\d)-[a-z0-9]{5}\b"), r"\1-POD"),
    (re.compile(r"\bof \d+( requests)?"), "of N"),
)
T = TypeVar("T")

# The chart's Role names one Lease; here each operator has one of its own.
_ROLE: Final = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "chaos-leases", "namespace": NAMESPACE}}
LEASES: Final = {
    "apiVersion": "v1",
    "kind": "List",
    "items": [
        {**_ROLE, "kind": "Role", "rules": [{"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "update"]}]},
        {
            **_ROLE, "kind": "RoleBinding", "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "chaos-leases"},
        },
    ],
}  # fmt: skip


@dataclass
class Chaos:
    """A control plane with simulated nodes, for any number of lives at once."""

    plane: ControlPlane
    folder: Path
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    count: int = 0

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(install, self.plane)
        await asyncio.to_thread(self.plane.kubectl, "apply", "-f", "-", stdin=json.dumps(LEASES))
        self.admin = await self.stack.enter_async_context(administrator(self.plane))
        self.nodes = await self.stack.enter_async_context(Nodes(self.admin))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stack.aclose()

    def proxy(self) -> Proxy:
        """One of its own for an operator."""
        return Proxy(self.plane.server, ssl.create_default_context(cafile=str(self.plane.home / "pki" / "ca.crt")))

    async def life(self, expected: asyncio.Future[End] | None, **how: Any) -> Life:
        """A life in a new namespace, whose operator is not started yet; `expected` is None for the undisturbed one."""
        self.count += 1
        name = f"life-{self.count:03d}"
        proxy = await self.stack.enter_async_context(self.proxy())
        operator = Mortal(self.plane, self.folder, proxy, name, namespaces=name, **how)
        self.stack.push_async_callback(operator.kill)
        self.nodes.faults[name].attempts = FAILURES
        return Life(self, await Space.new(self.admin, name), proxy, operator, expected)


@dataclass
class End:
    """What is left to compare: status and names of the children after the first rollout and after the second, and after deletion."""

    live: Object
    rejected: Object
    left: list[str]
    began: dict[str, list[tuple[int, int]]]  # by revision and attempt: the step from which it went on, what divided its micro-batch


@dataclass
class Verdict:
    """How a life ended, compared with the undisturbed one."""

    name: str
    seconds: float = 0.0
    disturbed: int = 0
    duplicates: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    miscounted: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def converged(self) -> bool:
        """Did it end right?"""
        return not (self.duplicates or self.lost or self.miscounted or self.problems)


async def patient(ask: Callable[[], Awaitable[T]]) -> T:
    """The answer, also of an API server that is away for a minute."""
    for _ in range(60):
        with contextlib.suppress(errors.Unavailable):
            return await ask()
        await asyncio.sleep(1)
    return await ask()


class Stuck(Exception):
    """A life did not get on; says where."""


@dataclass
class Life:
    """One FineTune `bot` in a namespace of its own, with an operator of its own."""

    chaos: Chaos
    space: Space
    proxy: Proxy
    operator: Mortal
    expected: asyncio.Future[End] | None  # of the undisturbed life: None, this is the one
    at_edit: Callable[[], Awaitable[None]] | None = None  # harm between promotion and edit

    async def run(self) -> End:
        """From birth to deletion; Stuck when it does not get there."""
        faults = self.chaos.nodes.faults[self.space.name]
        self.operator.start()
        supervisor = asyncio.create_task(self.operator.supervise())
        try:
            await self.space.make(serving={"replicas": 1}, rollout=ROLLOUT)
            status = await self._phase("Live")
            faults.good_arms = {status["liveArm"]}
            live = await self._agrees("live")
            if self.at_edit:
                await self.at_edit()
            await patient(lambda: self.space.edit(training={"learningRate": "1e-4"}))
            await self._phase("Rejected")
            rejected = await self._agrees("rejected")
            await patient(lambda: self.space.admin.delete(FINETUNE, self.space.name, "bot"))
            return End(live, rejected, await self._nothing_but_the_volume(), faults.began)
        finally:
            supervisor.cancel()
            await self.operator.kill()

    async def _phase(self, wanted: str) -> Object:
        deadline = time.monotonic() + LIFE_SECONDS
        while (status := await patient(self.space.status)).get("phase") != wanted:
            if time.monotonic() > deadline:
                raise Stuck(f"{wanted} did not come: {json.dumps(status)[:3000]}\n{self.said()}")
            await asyncio.sleep(0.3)
        return status

    async def _agrees(self, moment: str) -> Object:
        """The snapshot, once it rests; and, where one is expected, once it is the expected one (the last one, if it never is)."""
        last = await self._rest()
        if self.expected is None:
            return last
        wanted = getattr(await self.expected, moment)
        deadline = time.monotonic() + AGREE_SECONDS
        while last != wanted and time.monotonic() < deadline:
            await asyncio.sleep(0.5)
            last = await self.snapshot()
        return last

    async def _rest(self) -> Object:
        last, since = await self.snapshot(), time.monotonic()
        deadline = since + LIFE_SECONDS
        while time.monotonic() - since < QUIET_SECONDS and time.monotonic() < deadline:
            await asyncio.sleep(0.5)
            now = await self.snapshot()
            if now != last:
                last, since = now, time.monotonic()
        return last

    async def _nothing_but_the_volume(self) -> list[str]:
        """What is left, once it is nothing but the volume and has been for a moment."""
        deadline = time.monotonic() + 60
        since: float | None = None
        while True:
            left = sorted(f"{plural}/{name}" for plural, name in await patient(self.space.children))
            if left != ["persistentvolumeclaims/bot-work"]:
                since = None
            elif since is None:
                since = time.monotonic()
            if (since and time.monotonic() - since > 1.5) or time.monotonic() > deadline:
                return left
            await asyncio.sleep(0.3)

    async def snapshot(self) -> Object:
        """The status and the children by name, without what may vary."""
        children = sorted(f"{plural}/{name}" for plural, name in await patient(self.space.children))
        status = self._plain(await patient(self.space.status))
        for attempt in status.get("attempts", []):
            if attempt["outcome"] != "Succeeded":  # how far it was seen to be when it was last asked
                attempt.pop("step", None)
                attempt.pop("resumedFromStep", None)
            attempt.pop("gpus", None)  # told if it was ever seen to run
        status.get("rollout", {}).pop("name", None)  # of when it began
        return {"children": children, "status": status}

    def _plain(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: self._plain(v) for k, v in value.items() if k not in TIMES}
        if isinstance(value, list):
            return [self._plain(v) for v in value]
        if isinstance(value, str):
            value = value.replace(self.space.name, "NAMESPACE")
            for pattern, instead in VARYING:
                value = pattern.sub(instead, value)
        return value

    def said(self) -> str:
        """The end of the operator's log."""
        return self.operator.log.read_text()[-2500:] if self.operator.log.exists() else ""

    async def judged(self, verdict: Verdict) -> Verdict:
        """Live it and compare."""
        started = time.monotonic()
        try:
            end = await self.run()
        except (Stuck, errors.ClusterError, OSError) as error:
            verdict.problems.append(str(error))
        else:
            assert self.expected is not None
            compare(end, await self.expected, verdict)
        verdict.duplicates += twice(self.proxy.writes)
        verdict.seconds = time.monotonic() - started
        return verdict


def twice(writes: list[Call]) -> list[str]:
    """Children that were made more than once; Events are told, not made."""
    made = Counter(f"{c.resource}/{c.name}" for c in writes if c.method == "POST" and c.code == 201 and c.resource != "events")
    return [f"{child} was made {n} times" for child, n in made.items() if n > 1]


def compare(end: End, expected: End, verdict: Verdict) -> None:
    """Add what differs to the verdict, each where it belongs."""
    for moment in ("live", "rejected"):
        got, wanted = getattr(end, moment), getattr(expected, moment)
        missing = set(wanted["children"]) - set(got["children"])
        verdict.lost += [f"{moment}: {child} is missing" for child in sorted(missing)]
        verdict.duplicates += [f"{moment}: {child} is one too many" for child in sorted(set(got["children"]) - set(wanted["children"]))]
        for revision, good in zip(got["status"].get("revisions", []), wanted["status"]["revisions"], strict=False):
            if revision.get("charges") != good.get("charges"):
                verdict.miscounted.append(f"{moment}: {revision['name']} was charged {revision.get('charges')}, not {good.get('charges')}")
        if got["status"] != wanted["status"]:
            verdict.problems.append(f"{moment}: the status differs: {'; '.join(differences(got['status'], wanted['status']))}")
    for attempt in sorted({*end.began, *expected.began}):
        if (began := end.began.get(attempt)) != (good := expected.began.get(attempt)):
            verdict.lost.append(f"attempt {attempt} began at (step, part of the micro-batch) {began}, not {good}")
    if end.left != expected.left:
        verdict.problems.append(f"left after deletion: {end.left}")


def differences(got: Any, wanted: Any, path: str = "") -> list[str]:
    """Where two values differ, by path."""
    if isinstance(got, dict) and isinstance(wanted, dict):
        return [d for k in sorted({*got, *wanted}) for d in differences(got.get(k), wanted.get(k), f"{path}.{k}")]
    if isinstance(got, list) and isinstance(wanted, list) and len(got) == len(wanted):
        return [d for i, (a, b) in enumerate(zip(got, wanted, strict=True)) for d in differences(a, b, f"{path}[{i}]")]
    return [] if got == wanted else [f"{path} is {json.dumps(got)[:300]}, not {json.dumps(wanted)[:300]}"]


def kill_after(life: Life, which: Callable[[int], bool], verdict: Verdict) -> None:
    """SIGKILL the operator after those of its writes (numbered from 1), before it sees the answer."""

    async def after(call: Call) -> None:
        if call.write and which(len(life.proxy.writes)):
            verdict.disturbed += 1
            verdict.name += f" ({call})" if verdict.disturbed == 1 else ""
            await life.operator.kill()
            life.operator.start()

    life.proxy.after = after
