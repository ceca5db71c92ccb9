"""One FineTune from Pending to Live, edited, reverted, broken and mended, with users calling all the while."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest

from demo.address import cluster_ip
from demo.cluster import OPERATOR_NAMESPACE
from tests.chaos import pods
from tests.e2e.world import FineTune, Object, Space, Users, World, audit, condition, labelled_rows, spec
from tests.watching import Watching, dashboard, documented, documented_ports

pytestmark = pytest.mark.asyncio(loop_scope="module")
LIFE_SECONDS = 400.0
CONTROL_PORT = 10001
ROUTER_PORTS = (10000, CONTROL_PORT, 10002, 10003, 9901)
KILLS = 3
ERRORS = 80  # percent: beyond chance after thirty failures, a few seconds in which Prometheus looks more than once
HELD = 30  # percent of the step that waits for traffic
ROUTERS = "finetune.dev/name=bot,finetune.dev/component=router"
SOMEBODY = {"holderIdentity": "somebody-else", "leaseDurationSeconds": 15}
OPERATOR = "app.kubernetes.io/name=finetune-operator"
_OPERATOR_PODS = ("-n", OPERATOR_NAMESPACE, "-l", OPERATOR)


@pytest.fixture(scope="module")
def space(world: World) -> Iterator[Space]:
    """A namespace for this file."""
    with world.namespace("e2e-life") as found:
        found.config_map("rows", {"train.jsonl": labelled_rows(160)})
        yield found


@pytest.fixture(scope="module")
def bot(space: Space) -> FineTune:
    """The FineTune of this file's tests; each test goes on where the last one ended."""
    return space.finetune("bot")


async def test_two_ranks_train_it_and_it_goes_live(bot: FineTune) -> None:
    bot.apply(
        spec(compute={"nodes": 2, "cpu": "100m", "memory": "2Gi"}, evaluation={"metrics": [{"type": "ExactMatch"}], "maxNewTokens": 16})
    )
    status = await bot.phase("Live", "Rejected", "Failed", seconds=LIFE_SECONDS)
    assert status["phase"] == "Live", bot.describe()
    assert status["liveRevision"] == status["revision"]
    assert float(status["evaluation"]["tuned"]["score"]) > float(status["evaluation"]["baseline"]["score"])
    assert condition(status, "Ready")["status"] == "True"
    assert condition(status, "Available")["status"] == "True"
    assert [a["outcome"] for a in status["attempts"]] == ["Succeeded"]
    assert len(bot.children("pods", "finetune.dev/stage=train")) == 2
    finished = [s["name"] for s in status["stages"] if s.get("finished")]
    assert finished == ["fetch", "prepare", "baseline", "train", "evaluate", "deploy", "rollout", "bake"]


async def test_who_names_no_user_is_answered_by_what_is_live(bot: FineTune) -> None:
    base = cluster_ip(bot.kubectl, bot.space.name, bot.name)
    body = {"model": bot.name, "prompt": "Ticket 3: the printer on floor 3 is broken.", "max_tokens": 8, "temperature": 0}
    async with aiohttp.ClientSession() as session, session.post(f"{base}/v1/completions", json=body) as response:
        answer = await response.json()
        assert response.headers["x-finetune-arm"] == bot.status()["liveArm"]
    assert answer["usage"]["completion_tokens"] > 1


async def test_no_test_row_is_in_a_training_file(bot: FineTune) -> None:
    status = bot.status()
    found = json.loads(_in_server(bot, _SPLITS, status["revision"]))
    assert found["test"] > 0
    assert found["train"] > 0
    assert found["both"] == 0


async def test_the_old_arm_goes_once_no_router_knows_it(bot: FineTune) -> None:
    live = bot.status()["liveArm"]
    await bot.until("the live arm alone", lambda _: _arms(bot) == [live], seconds=90)


async def test_the_plugin_tells_of_it_and_fetches_its_pages(bot: FineTune, tmp_path: Path) -> None:
    revision = bot.status()["revision"]
    told = _plugin(bot, tmp_path, "status")
    assert "Live" in told
    assert revision in told
    for kind, options, words in (
        ("evaluation", (), "ExactMatch"), ("data", ("--data",), "training rows"), ("card", ("--card",), "library_name: "),
    ):  # fmt: skip
        file = tmp_path / _plugin(bot, tmp_path, "report", *options).splitlines()[-1]
        assert file.name.startswith(f"bot-{revision}-{kind}.")
        assert words in file.read_text()
    readers = ("-n", bot.space.name, "pods", "-l", "app.kubernetes.io/managed-by=kubectl-finetune")
    await bot.until("no pod that reads", lambda _: not (bot.kubectl.get(*readers) or {}).get("items"), seconds=60)


async def test_at_rest_it_writes_nothing(bot: FineTune) -> None:
    await asyncio.sleep(3)
    since = datetime.now(UTC)
    await asyncio.sleep(20)
    assert _by_operator(since) == []


async def test_a_restarted_operator_writes_nothing(bot: FineTune) -> None:
    since = datetime.now(UTC)
    bot.kubectl("delete", "pod", *_OPERATOR_PODS, "--wait=true", seconds=120)
    bot.kubectl("wait", "pod", *_OPERATOR_PODS, "--for=condition=Ready", "--timeout=60s")
    await asyncio.sleep(12)
    assert _by_operator(since) == []


async def test_an_edited_learning_rate_trains_anew_and_is_compared_with_what_is_live(bot: FineTune) -> None:
    """The operator is killed three times meanwhile, at moments that differ from run to run: it goes on from what it has committed."""
    first, kills = bot.status()["liveRevision"], []
    async with bot.users() as users:
        edited = bot.get()["spec"]
        edited["training"]["learningRate"] = "8e-3"
        bot.apply(edited)
        killer = asyncio.create_task(_kill_the_operator(bot, kills))
        try:
            status = await bot.until("another live revision", lambda s: _lives_another(s, first), seconds=LIFE_SECONDS)
        finally:
            killer.cancel()
            await asyncio.gather(killer, return_exceptions=True)
        await asyncio.sleep(1)
    print(f"the operator was killed after {', '.join(kills)}")
    assert len(kills) == KILLS
    trained = [a for a in status["attempts"] if a["revision"] == status["revision"]]
    assert [(a["number"], a["outcome"]) for a in trained] == [(1, "Succeeded")], "no attempt twice, and none charged"
    assert status["evaluation"]["reference"] == first
    assert status["liveRevision"] == status["revision"] != first
    assert users.failed == []
    assert len(users.arms()) == 2


async def test_a_reverted_edit_is_live_again_without_training(bot: FineTune) -> None:
    before = {j["metadata"]["name"] for j in bot.children("jobs", "finetune.dev/stage=train")}
    second = bot.status()["liveRevision"]
    reverted = bot.get()["spec"]
    reverted["training"]["learningRate"] = "1e-2"
    async with bot.users() as users:
        bot.apply(reverted)
        await bot.until("the old revision live", lambda s: _lives_another(s, second), seconds=180)
    assert {j["metadata"]["name"] for j in bot.children("jobs", "finetune.dev/stage=train")} == before
    assert users.failed == []


async def test_whoever_is_on_the_new_arm_is_back_seconds_after_an_abort(bot: FineTune, tmp_path: Path) -> None:
    """Also when it has everybody already: until the bake is over the old arm is kept warm."""
    changed, live = bot.get()["spec"], bot.status()["liveArm"]
    served = _lives_of_pods(bot, live)
    changed["serving"]["resources"]["requests"]["memory"] = "258Mi"
    changed["rollout"] |= {"steps": [{"weight": 100}], "bake": "10m"}
    async with bot.users(every=0.05) as users, bot.edited(changed):
        status = await bot.until("everybody on the new arm", lambda s: (s.get("rollout") or {}).get("state") == "Baking", seconds=120)
        await asyncio.sleep(2)
        asked = time.monotonic()
        await asyncio.to_thread(_plugin, bot, tmp_path, "abort")
        status = await bot.phase("Rejected", seconds=30)
        back = time.monotonic()
        await asyncio.sleep(2)
    assert condition(status, "Ready")["reason"] == "Aborted"
    last = max(call.sent for call in users.calls if call.arm == status["rollout"]["arm"])
    print(f"the last request that met the new arm was sent {last - asked:.1f} s after the abort was asked for")
    assert users.arms(since=back) == {live}
    assert last < back < asked + 15
    assert users.failed == []
    assert _lives_of_pods(bot, live) == served, "no pod of the old model was restarted"


async def test_a_learning_rate_of_ten_reaches_no_user(bot: FineTune) -> None:
    live = bot.status()["liveRevision"]
    bad = bot.get()["spec"]
    bad["training"]["learningRate"] = "10"
    async with bot.users() as users, bot.edited(bad):
        status = await bot.phase("Rejected", "Failed", "RollingOut", seconds=LIFE_SECONDS)
    assert status["phase"] in ("Rejected", "Failed")
    assert status["liveRevision"] == live
    assert condition(status, "Stalled")["status"] == "True"
    assert condition(status, "Available")["status"] == "True"
    assert "retry" in condition(status, "Ready")["message"] or "gate" in condition(status, "Ready")["message"]
    assert len(users.arms()) == 1


async def test_an_image_that_is_never_ready_gets_no_user(bot: FineTune, watching: Watching) -> None:
    changed = _with_image(bot.get()["spec"], "finetune.dev/there-is-no-such-image:1", deadline="15s")
    live = bot.status()["liveArm"]
    async with bot.users() as users, bot.edited(changed):
        status = await bot.phase("Rejected", seconds=120)
        await watching.told("FineTuneRolledBack", **bot.labels, reason="NeverReady")
    assert condition(status, "Ready")["reason"] == "NeverReady"
    assert "there-is-no-such-image" in condition(status, "Ready")["message"]
    assert users.arms() == {live}
    assert users.failed == []
    await watching.resolved("FineTuneRolledBack", **bot.labels)


async def test_an_image_that_answers_errors_is_taken_back_from_every_user(bot: FineTune, broken_image: str, watching: Watching) -> None:
    changed = _with_image(bot.get()["spec"], broken_image, deadline="60s", minimum=20, errors=ERRORS)
    live = bot.status()["liveArm"]
    async with bot.edited(changed):
        async with bot.users(every=0.05) as users:
            status = await bot.phase("Rejected", seconds=180)
            back = time.monotonic()
            await asyncio.sleep(3)
        await watching.told("FineTuneErrors", **bot.labels, role="canary")
        await watching.told("FineTuneRolledBack", **bot.labels, reason="GuardFailed")
    assert condition(status, "Ready")["reason"] == "GuardFailed", condition(status, "Ready")
    assert status["liveArm"] == live
    broken = [c.answered for c in users.failed]
    assert broken, "no user met the canary: the guard had nothing to see"
    assert users.arms(since=back) == {live}
    assert max(broken) <= back
    print(f"users met the broken arm for {max(broken) - min(broken):.1f} s")
    await watching.resolved("FineTuneRolledBack", **bot.labels)
    await watching.resolved("FineTuneErrors", **bot.labels)


async def test_while_prometheus_is_down_nobody_is_moved(bot: FineTune, watching: Watching) -> None:
    changed = bot.get()["spec"]
    changed["serving"]["resources"]["requests"]["memory"] = "260Mi"
    changed["rollout"]["steps"] = [{"weight": HELD, "hold": "2s"}, {"weight": 100}]
    changed["rollout"]["guards"] |= {"minRequests": 50, "queries": [{"name": "refusals", "query": "sum(refused)", "max": "1"}]}
    live = bot.status()["liveArm"]
    bot.apply(changed)
    await bot.until("why it waits", lambda s: "refusals" in condition(s, "Ready").get("message", ""), seconds=120)
    changed["rollout"]["progressDeadline"] = "15s"  # of which none of this waiting counts
    bot.apply(changed)
    await asyncio.sleep(20)
    status = bot.status()
    assert (status["liveArm"], status["rollout"]["weight"], status["phase"]) == (live, 0, "Paused"), bot.describe()
    assert "Prometheus cannot be asked" in condition(status, "Ready")["message"]
    await watching.told("FineTuneRolloutHeld", **bot.labels, reason="GuardUndecided")


async def test_without_traffic_it_is_neither_promoted_nor_rolled_back(bot: FineTune, watching: Watching) -> None:
    changed = bot.get()["spec"]
    del changed["rollout"]["guards"]["queries"]
    before = bot.status()["liveArm"]
    bot.apply(changed)
    await bot.until("the first step", _at_held_step, seconds=120)
    await watching.resolved("FineTuneRolloutHeld", **bot.labels)
    await asyncio.sleep(12)
    status = bot.status()
    assert _at_held_step(status), bot.describe()
    assert status["liveArm"] == before
    assert "requests" in " ".join(status["rollout"]["evidence"]), "it says what it waits for"


async def test_nobody_else_moves_a_weight(bot: FineTune) -> None:
    addresses = _routers(bot).values()
    asked = [f"http://{address}:{port}/runtime_modify?routing.weight=100" for address in addresses for port in ROUTER_PORTS]
    for token in ("", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJmaW5ldHVuZS1vcGVyYXRvciJ9."):
        told = json.loads(_in_server(bot, _INTRUDER, token, *asked))
        assert len(told) == 2 * len(ROUTER_PORTS)
        assert 200 not in told.values(), told
        assert {told[url] for url in asked if f":{CONTROL_PORT}/" in url} == {401}, told
    assert _at_held_step(bot.status())


async def test_while_the_operator_is_away_traffic_stays_and_then_goes_on(bot: FineTune, watching: Watching) -> None:
    old = bot.status()["liveArm"]
    served = _lives_of_pods(bot, old)
    operator = ("-n", OPERATOR_NAMESPACE, "deployment/finetune-operator")
    bot.kubectl("scale", *operator, "--replicas=0")
    try:
        bot.kubectl("wait", "pod", *_OPERATOR_PODS, "--for=delete", "--timeout=60s", seconds=70)
        async with bot.users(every=0.05) as users:
            await asyncio.sleep(8)
            gone = next(iter(_routers(bot)))
            ready = ("wait", "pod", "-l", ROUTERS, "--for=condition=Ready", "--timeout=90s")
            for command in (("delete", "pod", gone, "--wait=true"), ready):  # in threads, for the users go on
                await asyncio.to_thread(bot.kubectl, "-n", bot.space.name, *command, seconds=120)
            restarted = time.monotonic()
            await asyncio.sleep(8)
            assert users.failed == []
            moved = {user for user, arms in _arms_by_user(users).items() if len(arms) > 1}
            assert moved == set(), "a router that starts meanwhile serves the last document"
            assert users.arms(since=restarted) == users.arms() != {old}, "both arms, before and after"
            await watching.told("FineTuneOperatorDown")
            _give_the_lease_to_somebody(bot)
            bot.kubectl("scale", *operator, "--replicas=1")
            await watching.told("FineTuneNoLeader", namespace=OPERATOR_NAMESPACE)
            status = await bot.until("the promotion", lambda s: s["liveArm"] != old, seconds=90)
            found = _lives_of_pods(bot, old, going=True)  # once nobody is on it, it goes
            assert found == served, "no pod of the old model was restarted by the promotion"
            await bot.phase("Live", seconds=60)
    finally:
        bot.kubectl("scale", *operator, "--replicas=1")
    assert status["rollout"]["state"] in ("Baking", "Promoted"), status["rollout"]
    assert users.failed == []
    await watching.resolved("FineTuneOperatorDown")
    await watching.resolved("FineTuneNoLeader")


async def test_users_whom_nobody_serves_are_told_of_until_a_pod_is_ready_again(bot: FineTune, watching: Watching) -> None:
    arm = bot.status()["liveArm"]
    bot.kubectl("-n", bot.space.name, "delete", "pod", "-l", f"finetune.dev/arm={arm}", "--grace-period=1", "--wait=false")
    await bot.until("nobody served", lambda s: condition(s, "Available").get("status") == "False", seconds=60)
    await watching.told("FineTuneUsersNotServed", **bot.labels)
    await bot.until("users served", lambda s: condition(s, "Available").get("status") == "True", seconds=60)
    await watching.resolved("FineTuneUsersNotServed", **bot.labels)


async def test_prometheus_reached_the_documented_ports_and_had_a_number_for_every_panel(bot: FineTune, watching: Watching) -> None:
    reached = await watching.seen("up == 1")
    assert {target["job"] for target in reached} == {job["job_name"] for job in documented()["scrape_configs"]}
    assert {target["instance"].rpartition(":")[2] for target in reached} == documented_ports()
    assert await watching.lacking(dashboard(**bot.labels)) == []


_SPLITS = """
import json, pathlib, sys
folder = pathlib.Path("/work/data") / sys.argv[1]
test = [json.loads(line)["id"] for line in (folder / "test.jsonl").read_text().splitlines()]
train = set((folder / "train-hashes.txt").read_text().split())
print(json.dumps({"test": len(test), "train": len(train), "both": len(train & set(test))}))
"""

_INTRUDER = """
import json, sys, urllib.error, urllib.request
told = {}
for url in sys.argv[2:]:
    headers = {"Authorization": f"Bearer {sys.argv[1]}"} if sys.argv[1] else {}
    try:
        told[url] = urllib.request.urlopen(urllib.request.Request(url, method="POST", headers=headers), timeout=3).status
    except urllib.error.HTTPError as error:
        told[url] = error.code
    except OSError as error:
        told[url] = str(error)
print(json.dumps(told))
"""


async def _kill_the_operator(bot: FineTune, kills: list[str]) -> None:
    """KILLS times, each some seconds after it was back; notes the phase in which it was."""
    dice = random.Random()
    while len(kills) < KILLS:
        await asyncio.sleep(dice.uniform(1, 12))
        found = await asyncio.to_thread(pods.running, bot.kubectl, OPERATOR_NAMESPACE, OPERATOR)
        if found and await asyncio.to_thread(pods.kill, bot.kubectl, OPERATOR_NAMESPACE, found[0]):
            kills.append(str((await asyncio.to_thread(bot.status)).get("phase")))


def _plugin(bot: FineTune, folder: Path, command: str, *options: str) -> str:
    """What `kubectl finetune COMMAND bot` prints, run in that folder with the cluster's kubectl on PATH."""
    kubectl = folder / "kubectl"
    kubectl.write_text(f'#!/bin/sh\nexec {shlex.join(bot.kubectl.command)} "$@"\n')
    kubectl.chmod(0o755)
    environment = {**os.environ, **bot.kubectl.env, "PATH": f"{folder}:{os.environ['PATH']}"}
    arguments = [sys.executable, "-m", "kubectl_finetune", command, bot.name, "-n", bot.space.name, *options]
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _in_server(bot: FineTune, script: str, *arguments: str) -> str:
    """What a script prints in a model server's pod, which mounts the work volume and has no rights of its own."""
    pod = next(p["metadata"]["name"] for p in bot.children("pods", "finetune.dev/component=arm"))
    return bot.kubectl("-n", bot.space.name, "exec", pod, "--", "python3", "-c", script, *arguments)


def _by_operator(since: datetime) -> list[str]:
    """Successful writes of the operator's account but its Lease's."""
    account = f"system:serviceaccount:{OPERATOR_NAMESPACE}:"
    writes = [e for e in audit(since) if e["user"]["username"].startswith(account) and e["objectRef"]["resource"] != "leases"]
    return [f"{e['verb']} {e['objectRef']['resource']} {e['objectRef'].get('name')}" for e in writes]


def _give_the_lease_to_somebody(bot: FineTune) -> None:
    """Who does not renew it."""
    spec = {**SOMEBODY, "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
    bot.kubectl("-n", OPERATOR_NAMESPACE, "patch", "lease", "finetune-operator", "--type=merge", "-p", json.dumps({"spec": spec}))


def _arms(bot: FineTune) -> list[str]:
    return [d["metadata"]["labels"]["finetune.dev/arm"] for d in bot.children("deployments", "finetune.dev/arm")]


def _at_held_step(status: Object) -> bool:
    rollout = status.get("rollout") or {}
    return bool(status["phase"] == "RollingOut" and rollout.get("weight") == HELD and rollout.get("state") != "Promoted")


def _routers(bot: FineTune) -> dict[str, str]:
    """Addresses of the router pods by name."""
    pods = bot.children("pods", "finetune.dev/component=router")
    return {p["metadata"]["name"]: p["status"]["podIP"] for p in pods if "deletionTimestamp" not in p["metadata"]}


def _lives_of_pods(bot: FineTune, arm: str, *, going: bool = False) -> dict[str, int]:
    """Restarts by uid of the arm's pods that are to stay: an arm that comes back has pods of its last time still, which finish answers.
    `going`: these as well."""
    pods = [p for p in bot.children("pods", f"finetune.dev/arm={arm}") if going or "deletionTimestamp" not in p["metadata"]]
    return {p["metadata"]["uid"]: sum(c["restartCount"] for c in p["status"]["containerStatuses"]) for p in pods}


def _arms_by_user(users: Users) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for call in users.calls:
        if call.ok:
            found.setdefault(call.user, set()).add(call.arm)
    return found


def _lives_another(status: Object, revision: str) -> bool:
    return bool(status["phase"] == "Live" and status["liveRevision"] != revision)


def _with_image(good: Object, image: str, *, deadline: str, minimum: int = 0, errors: int = 2) -> Object:
    """The same spec with another server image and a shorter patience."""
    changed: Object = json.loads(json.dumps(good))
    changed["serving"]["image"] = image
    changed["rollout"]["progressDeadline"] = deadline
    changed["rollout"]["guards"] |= {"minRequests": minimum, "maxErrorRatePercent": errors}
    return changed
