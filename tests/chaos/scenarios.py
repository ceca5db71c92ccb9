"""What is done to a life or to many: each a coroutine that says how it ended.

A full life each, but for the two that ask whether many are held up: those live in a namespace of thousands that hardly cost anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import os
import random
import signal
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

from aiohttp import web
from finetune_operator import errors, kinds, names
from finetune_operator.build.pods import Owner
from finetune_operator.kinds import Kind

from tests.chaos.lives import ROLLOUT, Chaos, End, Life, Verdict, kill_after, patient, twice
from tests.chaos.process import Mortal
from tests.chaos.proxy import FAILED, GONE, Call, Cut, Proxy, refused
from tests.integration.engine import ACCOUNT, NAMESPACE, Space
from tests.unit.operator.world import Outcome

Expected = asyncio.Future[End]
Scenario = Callable[[Chaos, Expected], Awaitable[Verdict]]
SEED: Final = 20260101
ETCD_AWAY_SECONDS: Final = 30.0
POD_ADDRESS: Final = "127.0.77.1"
TOKEN_SECONDS: Final = 63.0  # the client reads a pod's token once a minute
CRD: Final = Kind("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False)


async def killed_after_every_write(chaos: Chaos, expected: Expected) -> Verdict:
    """The operator never sees the answer to any write."""
    life, verdict = await chaos.life(expected), Verdict("killed after every write")
    kill_after(life, lambda _: True, verdict)
    return await life.judged(verdict)


def killed_after(number: int) -> Scenario:
    """It is killed once, after that write."""

    async def scenario(chaos: Chaos, expected: Expected) -> Verdict:
        life, verdict = await chaos.life(expected), Verdict(f"killed after write {number}")
        kill_after(life, lambda n: n == number, verdict)
        return await life.judged(verdict)

    return scenario


async def refused_now_and_then(chaos: Chaos, expected: Expected) -> Verdict:
    """A quarter of all requests meet 429 with Retry-After, 500 or 503; the Lease's too."""
    life, dice = await chaos.life(expected), random.Random(SEED)

    async def before(_: Call) -> web.Response | None:
        if dice.random() > 0.25:
            return None
        code = dice.choice((429, 500, 503))
        return refused(code, after=1 if code == 429 else None)

    life.proxy.before = before
    return await life.judged(Verdict("429, 500, 503 for a quarter of all requests", disturbed=1))


async def answers_lost(chaos: Chaos, expected: Expected) -> Verdict:
    """Every third write is done, but its answer is a 500 or the end of the connection."""
    life, dice = await chaos.life(expected), random.Random(SEED)

    async def after(call: Call) -> web.Response | None:
        if not call.write or dice.random() > 0.33:
            return None
        if dice.random() < 0.5:
            raise Cut
        return refused(500)

    life.proxy.after = after
    return await life.judged(Verdict("a third of the writes done, their answers lost", disturbed=1))


async def timeouts(chaos: Chaos, expected: Expected) -> Verdict:
    """A few writes are done, but answered only after the operator has given them up."""
    life = await chaos.life(expected)

    async def after(call: Call) -> None:
        if call.write and len(life.proxy.writes) in (3, 20, 50):
            await asyncio.sleep(20)

    life.proxy.after = after
    return await life.judged(Verdict("three writes answered after the timeout", disturbed=1))


async def watches_dropped(chaos: Chaos, expected: Expected) -> Verdict:
    """Every watch ends each second."""
    life = await chaos.life(expected)
    async with _each(1.0, life.proxy.end_watches):
        return await life.judged(Verdict("watches dropped each second", disturbed=1))


async def a_watch_fails(chaos: Chaos, expected: Expected) -> Verdict:
    """Every five seconds each watch ends with an internal error, at which kopf gives up."""
    life = await chaos.life(expected)
    async with _each(5.0, lambda: life.proxy.end_watches(FAILED)):
        return await life.judged(Verdict("watches end with an internal error", disturbed=1))


async def watches_gone(chaos: Chaos, expected: Expected) -> Verdict:
    """Watches end with 410 Gone every two seconds, and half of the new ones begin with it."""
    life, dice = await chaos.life(expected), random.Random(SEED)

    async def before(call: Call) -> web.Response | None:
        if call.watch and dice.random() < 0.5:
            return web.json_response(GONE)
        return None

    life.proxy.before = before
    async with _each(2.0, lambda: life.proxy.end_watches(GONE)):
        return await life.judged(Verdict("watches end with 410 Gone", disturbed=1))


async def token_expired(chaos: Chaos, expected: Expected) -> Verdict:
    """401 for its token while it trains; a new one is in its kubeconfig three seconds later."""
    life = await chaos.life(expected)
    old, dead = life.operator.token, False

    async def before(call: Call) -> web.Response | None:
        return refused(401) if dead and call.token == old else None

    async def expire() -> None:
        nonlocal dead
        await _phase(life, "Training")
        dead = True
        await asyncio.sleep(3)
        life.operator.renew(await asyncio.to_thread(chaos.plane.kubectl, "-n", NAMESPACE, "create", "token", ACCOUNT, "--duration=2h"))

    life.proxy.before = before
    async with _aside(expire()):
        return await life.judged(Verdict("401 until there is a new token", disturbed=1))


async def token_renewed_in_a_pod(chaos: Chaos, expected: Expected) -> Verdict:
    """As in a pod: the kubelet writes a new token, the old one is refused a minute and a bit later. Nothing ends for that."""
    life, verdict = await chaos.life(expected), Verdict("a new token in the pod, the old one refused", disturbed=1)
    pki, old, dead = chaos.plane.home / "pki", life.operator.token, asyncio.Event()
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(pki / "serving.crt", pki / "serving.key")
    await life.proxy.listen(POD_ADDRESS, 443, serving)
    life.operator.in_a_pod(POD_ADDRESS, (pki / "ca.crt").read_text())

    async def before(call: Call) -> web.Response | None:
        return refused(401) if dead.is_set() and call.token == old else None

    async def renew() -> None:
        await life.operator.leading()
        token = await asyncio.to_thread(chaos.plane.kubectl, "-n", NAMESPACE, "create", "token", ACCOUNT, "--duration=2h")
        life.operator.renew_in_the_pod(token)
        await asyncio.sleep(TOKEN_SECONDS)
        dead.set()
        life.proxy.end_watches()

    async def refused_by_now() -> None:
        await asyncio.wait_for(dead.wait(), 2 * TOKEN_SECONDS)

    life.proxy.before, life.at_edit = before, refused_by_now
    async with _aside(renew()):
        await life.judged(verdict)
    if life.operator.starts != 1:
        verdict.problems.append(f"its process was started {life.operator.starts} times: {life.said()}")
    return verdict


async def clock_jumps(chaos: Chaos, expected: Expected) -> Verdict:
    """The time of day is an hour ahead for three seconds of training, behind while users move, ahead while it bakes."""
    life = await chaos.life(expected)

    async def jump() -> None:
        for phase, off, seconds in (("Training", 3600, 3.0), ("RollingOut", -3600, 2.0), ("Baking", 3600, 1.0), ("Training", -3600, 3.0)):
            await _phase(life, phase)
            life.operator.clock.write_text(str(off))
            await asyncio.sleep(seconds)
            life.operator.clock.write_text("0")

    async with _aside(jump()):
        return await life.judged(Verdict("the clock jumps by an hour and back", disturbed=1))


async def other_field_owners(chaos: Chaos, expected: Expected) -> Verdict:
    """Another manager takes replicas and selector by force, three times, and puts labels of its own: these are left, those taken back."""
    life, verdict = await chaos.life(expected), Verdict("another manager takes fields by force", disturbed=1)

    async def take(kind: Kind, name: str, spec: dict[str, Any]) -> None:
        meta = {"name": name, "namespace": life.space.name, "labels": {"team": "other"}}
        body = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": meta, "spec": spec}
        by = {"fieldManager": "other", "force": "true"}
        await chaos.admin.patch(kind, life.space.name, name, body, content="application/apply-patch+yaml", **by)

    async def given_back(kind: Kind, name: str, field: str, wanted: Any) -> None:
        deadline = time.monotonic() + 20
        while True:
            found = await chaos.admin.get(kind, life.space.name, name) or {}
            if found["spec"][field] == wanted and found["metadata"]["labels"].get("team") == "other":
                return
            if time.monotonic() > deadline:
                verdict.problems.append(f"{kind.kind} {name}: {field} is {found['spec'][field]}, labels {found['metadata']['labels']}")
                return
            await asyncio.sleep(0.2)

    async def fight() -> None:
        arm = f"bot-{(await life.space.status())['liveArm']}"
        service = await chaos.admin.get(kinds.SERVICE, life.space.name, "bot") or {}
        selector, count = service["spec"]["selector"], len(life.proxy.writes)
        for _ in range(3):
            await take(kinds.SERVICE, "bot", {"selector": {**selector, "finetune.dev/component": "other"}})
            await take(kinds.DEPLOYMENT, arm, {"replicas": 2})
            await given_back(kinds.SERVICE, "bot", "selector", selector)
            await given_back(kinds.DEPLOYMENT, arm, "replicas", 1)
        await asyncio.sleep(3)
        if (used := len(life.proxy.writes) - count) > 20:
            verdict.problems.append(f"{used} writes to take three times two fields back")

    life.at_edit = fight
    return await life.judged(verdict)


async def frozen_leader(chaos: Chaos, expected: Expected) -> Verdict:
    """The leader freezes with a write under way, which arrives when its successor leads; when it thaws it must write no more."""
    life, verdict = await chaos.life(expected, identity="first"), Verdict("a frozen leader thaws after its Lease", disturbed=1)
    other = await chaos.stack.enter_async_context(chaos.proxy())
    name = life.space.name
    second = Mortal(chaos.plane, chaos.folder, other, name, identity=f"{name}-second", namespaces=name)
    chaos.stack.push_async_callback(second.kill)
    frozen, thawed = False, 0

    async def before(call: Call) -> None:
        nonlocal frozen
        if call.write and len(life.proxy.writes) == 25 and not frozen:
            frozen = True
            life.operator.freeze(signal.SIGSTOP)
            deadline = time.monotonic() + 60
            while len(other.writes) < 3 and time.monotonic() < deadline:
                await asyncio.sleep(0.2)

    async def thaw() -> None:
        nonlocal thawed
        while not life.operator.leads():
            await asyncio.sleep(0.1)
        second.start()
        while not frozen or len(other.writes) < 3:
            await asyncio.sleep(0.1)
        await asyncio.sleep(1)  # the late write has arrived
        thawed = len(life.proxy.writes)
        first, starts = life.operator, life.operator.starts
        first.freeze(signal.SIGCONT)
        while first.alive and first.starts == starts:
            await asyncio.sleep(0.1)

    life.proxy.before = before
    async with _aside(thaw()):
        await life.judged(verdict)
    if late := [str(c) for c in life.proxy.writes[thawed:]] if thawed else ["it never froze"]:
        verdict.problems.append(f"after its thaw: {late}")
    verdict.duplicates += [d for d in twice([*life.proxy.writes, *other.writes]) if d not in verdict.duplicates]
    await second.kill()
    return verdict


async def etcd_paused(chaos: Chaos, expected: Expected) -> Verdict:
    """etcd stands still for thirty seconds while three lives are at different points."""
    verdict = Verdict("etcd stands still for 30 s", disturbed=1)

    async def one(after: float) -> Verdict:
        await asyncio.sleep(after)
        return await (await chaos.life(expected)).judged(Verdict(f"etcd, started {after:.0f} s in"))

    lives = [asyncio.create_task(one(after)) for after in (0.0, 8.0, 16.0)]
    await asyncio.sleep(22)
    pid = chaos.plane.pids["etcd"]
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(ETCD_AWAY_SECONDS)
    finally:
        os.kill(pid, signal.SIGCONT)
    for each in await asyncio.gather(*lives):
        verdict.problems += each.problems
        verdict.duplicates += each.duplicates
        verdict.lost += each.lost
        verdict.miscounted += each.miscounted
        verdict.seconds = max(verdict.seconds, each.seconds)
    return verdict


async def full_queue(chaos: Chaos, _: Expected, count: int = 300) -> Verdict:
    """One worker, three hundred FineTunes at once: each gets its first Job, once."""
    verdict = Verdict(f"{count} FineTunes, one worker", disturbed=1)
    async with _crowd(chaos, "crowd-queue", FINETUNE_WORKERS="1") as (space, operator, proxy):
        await _make(space, count)
        operator.start()

        async def jobs() -> int:
            return len(await chaos.admin.list(kinds.JOB, space.name))

        await _until(verdict, "a Job for each", jobs, count, 180)
        verdict.duplicates += twice(proxy.writes)
        assert operator.starts == 1
    return verdict


async def poison(chaos: Chaos, _: Expected, count: int = 1000) -> Verdict:
    """A spec that an older CRD admitted, a status full of rubbish and a child that is none, among a thousand."""
    verdict = Verdict(f"three poisoned among {count}", disturbed=1)
    async with _crowd(chaos, "crowd-poison") as (space, operator, _):
        operator.start()
        await _spoilt_spec(chaos, space)
        await space.make("rubbish", serving={"replicas": 1}, rollout=ROLLOUT)
        rubbish = {
            "rollout": {"arm": "x", "revision": "x", "stable": "x", "state": "Stepping", "weight": 7, "memory": {"sums": 5, "looks": "x"}}
        }
        await chaos.admin.patch(kinds.FINETUNE, space.name, "rubbish", {"status": {"liveArm": "x", **rubbish}}, "status")
        await space.make("foreign")
        made = await chaos.admin.get(kinds.FINETUNE, space.name, "foreign") or {}
        await chaos.admin.create(kinds.CONTROLLER_REVISION, _nonsense(Owner(space.name, "foreign", made["metadata"]["uid"])))
        await _make(space, count, suspend=True)

        async def suspended() -> int:
            found = await chaos.admin.list(kinds.FINETUNE, space.name)
            return sum((f.get("status") or {}).get("phase") == "Suspended" for f in found)

        async def refused() -> bool:
            return (await space.status("spoilt")).get("reason") == "InvalidSpec"

        await _until(verdict, "the others", suspended, count, 180)
        await _until(verdict, "the spoilt one says so", refused, True, 20)
        if verdict.problems:
            said = operator.log.read_text().splitlines()
            verdict.problems.append("\n".join(line for line in said if '"INFO"' not in line or "one-" not in line)[-5000:])
    return verdict


def _nonsense(owner: Owner) -> dict[str, Any]:
    meta = owner.metadata("foreign-zzz", "revision", {names.REVISION: "zzz"})
    return {"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": meta, "revision": 1, "data": {"fields": ["no", "mapping"]}}


async def _spoilt_spec(chaos: Chaos, space: Space) -> None:
    found = json.loads(await asyncio.to_thread(chaos.plane.kubectl, "get", "crd", "finetunes.finetune.dev", "-o", "json"))
    strict = found["spec"]["versions"]
    lax = copy.deepcopy(strict)
    training = lax[0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["training"]
    del training["x-kubernetes-validations"], training["properties"]["learningRate"]["pattern"]
    await chaos.admin.patch(CRD, None, "finetunes.finetune.dev", {"spec": {"versions": lax}})
    deadline = time.monotonic() + 30
    while True:
        try:
            await space.make("spoilt", training={"learningRate": "fast"})
            break
        except (errors.Invalid, errors.Unavailable):  # 503 while the CRD's storage is made anew
            assert time.monotonic() < deadline, "the laxer CRD did not come into force"
            await asyncio.sleep(0.3)
    await chaos.admin.patch(CRD, None, "finetunes.finetune.dev", {"spec": {"versions": strict}})


@contextlib.asynccontextmanager
async def _crowd(chaos: Chaos, name: str, **environment: str) -> AsyncIterator[tuple[Space, Mortal, Proxy]]:
    """A namespace with an operator of its own, not started yet, whose pods run for ever."""
    chaos.nodes.outcomes[name]["fetch"] = [Outcome(never=True)]
    space = await Space.new(chaos.admin, name)
    async with chaos.proxy() as proxy:
        operator = Mortal(chaos.plane, chaos.folder, proxy, name, namespaces=name, environment=environment)
        try:
            yield space, operator, proxy
        finally:
            await operator.kill()


async def _make(space: Space, count: int, **spec: Any) -> None:
    slots = asyncio.Semaphore(16)

    async def one(number: int) -> None:
        async with slots:
            await space.make(f"one-{number:04d}", **spec)

    await asyncio.gather(*(one(n) for n in range(count)))


async def _until(verdict: Verdict, what: str, counted: Callable[[], Awaitable[int]], wanted: int, seconds: float) -> None:
    started = time.monotonic()
    while (found := await patient(counted)) < wanted:
        if time.monotonic() - started > seconds:
            verdict.problems.append(f"{what}: {found} of {wanted} after {seconds:.0f} s")
            break
        await asyncio.sleep(0.5)
    verdict.seconds += time.monotonic() - started


async def _phase(life: Life, wanted: str) -> None:
    while (await patient(life.space.status)).get("phase") != wanted:
        await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def _aside(work: Any) -> AsyncIterator[None]:
    """`work` goes on beside the block and ends with it; what it raises is raised."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        if task.done():
            task.result()
        task.cancel()


@contextlib.asynccontextmanager
async def _each(seconds: float, do: Callable[[], None]) -> AsyncIterator[None]:
    async def work() -> None:
        while True:
            await asyncio.sleep(seconds)
            do()

    async with _aside(work()):
        yield


SIDE_BY_SIDE: Final[tuple[Scenario, ...]] = (
    killed_after_every_write, refused_now_and_then, answers_lost, timeouts, watches_dropped, watches_gone, a_watch_fails, token_expired,
    token_renewed_in_a_pod, clock_jumps, other_field_owners, frozen_leader,
)  # fmt: skip
ALONE: Final[tuple[Scenario, ...]] = (etcd_paused, full_queue, poison)
