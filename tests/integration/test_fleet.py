"""H100, H200 and A100 shapes on the real scheduler and Job controller: where gangs land, and what becomes of them there."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from finetune_operator import kinds, names

from devcluster.controlplane import ControlPlane
from tests.integration.engine import Operator, Space, install, ready, until
from tests.integration.fleet import PRODUCT, Fleet, machines, profiles
from tests.integration.kubelet import NODE, Admin
from tests.unit.operator.world import Outcome

RUNS_ON = [Outcome(never=True)]
PRODUCTS = {made["metadata"]["name"]: made["metadata"]["labels"].get(PRODUCT) for made in machines()}
SHARED = {"accessMode": "ReadWriteMany"}
GIB = 2**30
QUOTA = kinds.Kind("", "v1", "resourcequotas", "ResourceQuota")
Object = dict[str, Any]


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """Its node monitor is patient, so that three hundred nodes need not say that they live."""
    with ControlPlane(flags={"controller-manager": ["--node-monitor-grace-period=30m"]}) as started:
        install(started)
        yield started


@pytest.fixture(scope="module")
def process(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    folder = tmp_path_factory.mktemp("operator")
    operator = Operator(plane, folder, "fleet", settings={"FINETUNE_PROFILES_FILE": str(profiles(folder))})
    operator.start()
    yield operator
    operator.process.kill()
    operator.process.wait()
    print(operator.log.read_text()[-6000:])


@pytest.fixture
async def fleet(admin: Admin, process: Operator) -> AsyncIterator[Fleet]:
    async with Fleet(admin) as running:
        await process.leading()
        yield running


async def make(life: Space, accelerator: str | None = None, *, nodes: int = 1, gpus: int = 8, **changes: Any) -> None:
    """A FineTune that is scored by its loss, so that nothing but its gang takes more than one GPU.

    A gang on one machine has four GPUs at most in these tests: its first rank may come to one that has no more.
    """
    asked = {"accelerator": accelerator, "gpusPerNode": gpus} if accelerator else {}
    compute = {"nodes": nodes, **asked, **changes.pop("compute", {})}
    await life.make(compute=compute, evaluation=None, **changes)


async def gang(life: Space, attempt: int = 1) -> list[Object]:
    """The pods of an attempt, once all of them run or have run."""
    revision = (await life.wait(lambda s: len(s.get("attempts") or ()) >= attempt))["revision"]

    async def there() -> list[Object] | None:
        pods = await life.pods(f"bot-{revision}-a{attempt}")
        return pods if pods and all(p["status"]["phase"] != "Pending" for p in pods) else None

    return list(await until(there, what=f"the gang of attempt {attempt}"))


def places(pods: list[Object]) -> list[str]:
    return [pod["spec"]["nodeName"] for pod in pods]


def charged(status: Object) -> dict[str, int]:
    return {name: number for name, number in status["revisions"][0]["charges"].items() if number}


async def test_gangs_land_on_machines_of_their_accelerator_alone(fleet: Fleet) -> None:
    wide, narrow, old, older = [await Space.new(fleet.admin, name) for name in ("wide", "narrow", "old", "older")]
    await make(wide, "h100", nodes=4, storage=SHARED)
    await make(narrow, "h100", nodes=2, gpus=2)
    await make(old, "a100-80")
    await make(older, "a100-40", gpus=4)
    for life in (wide, narrow, old, older):
        await life.phase("Trained")
    four = places(await gang(wide))
    assert len(set(four)) == 4
    assert {PRODUCTS[name] for name in four} == {"NVIDIA-H100-80GB-HBM3"}, "the PCIe machines have four"
    one = places(await gang(narrow))
    assert len(one) == 2
    assert len(set(one)) == 1, "a volume that is ReadWriteOnce"
    assert str(PRODUCTS[one[0]]).startswith("NVIDIA-H100")
    assert {PRODUCTS[name] for name in places(await gang(old))} == {"NVIDIA-A100-SXM4-80GB"}
    assert {str(PRODUCTS[name])[-4:] for name in places(await gang(older))} == {"40GB"}


async def test_what_no_machine_has_is_told_with_the_schedulers_arithmetic(fleet: Fleet) -> None:
    life = await Space.new(fleet.admin, "nowhere")
    await make(life, "b200")
    status = await life.wait(lambda s: "didn't match Pod's node affinity/selector" in ready(s).get("message", ""))
    assert ready(status)["reason"] == "Unschedulable"
    assert "0/300 nodes are available" in ready(status)["message"]
    await life.edit(compute={"accelerator": "h200"})
    status = await life.phase("Trained")
    assert (charged(status), status["revisions"][0]["tries"]["baseline"]) == ({}, 2), "what waited for the old one is made anew"


async def test_a_gang_wider_than_a_machine_is_refused_before_anything_is_made(fleet: Fleet) -> None:
    life = await Space.new(fleet.admin, "toowide")
    await make(life, "h100", nodes=2)
    status = await life.wait(lambda s: s.get("reason") == "NeedsSharedVolume")
    assert "storage.accessMode ReadWriteMany" in ready(status)["message"]
    assert await fleet.admin.list(kinds.JOB, "toowide") == []
    await life.edit(compute={"nodes": 1})
    await life.phase("Trained")


async def test_a_layout_without_room_is_refused_and_goes_on_with_a_larger_accelerator(fleet: Fleet) -> None:
    life = await Space.new(fleet.admin, "tight")
    estimate = {
        "memoryBytes": 100 * GIB, "seconds": 60, "passTokens": 2048, "longest": 2048, "accelerated": True,
        "memory": {"weights": 60 * GIB, "activations": 40 * GIB},
    }  # fmt: skip
    prepared = fleet.outcomes["tight"]["prepare"]
    prepared[0] = Outcome({**prepared[0].result, "estimate": estimate})
    await make(life, "l40s", gpus=4)
    status = await life.wait(lambda s: s.get("reason") == "DoesNotFit")
    assert "a rank needs at least 100.0 GiB" in ready(status)["message"]
    assert "compute.accelerator h200 (140.0 GiB)" in ready(status)["message"]
    assert not status["attempts"]
    await life.edit(compute={"accelerator": "h200"})
    await life.phase("Trained")
    assert {PRODUCTS[name] for name in places(await gang(life))} == {"NVIDIA-H200"}


async def test_a_quota_with_room_for_a_part_of_a_gang_is_told_and_nothing_is_paid_until_it_is_whole(fleet: Fleet) -> None:
    life = await Space.new(fleet.admin, "partly")
    quota = {"metadata": {"name": "quota", "namespace": "partly"}, "spec": {"hard": {"pods": "1"}}}
    await fleet.admin.create(QUOTA, quota)
    outcomes = fleet.outcomes["partly"]
    outcomes["train"], good = RUNS_ON, outcomes["train"]
    await make(life, "h100", nodes=2, gpus=2)
    status = await life.wait(lambda s: s.get("reason") == "Refused" and s["attempts"])
    assert "exceeded quota: quota" in ready(status)["message"]
    assert "began" not in status["attempts"][0]
    await fleet.admin.remove(QUOTA, "partly", "quota")
    await life.wait(lambda s: s["attempts"][0].get("began"))
    outcomes["train"] = good
    await life.phase("Trained")


async def test_a_rank_that_is_evicted_costs_nothing_and_the_gang_starts_again(fleet: Fleet) -> None:
    life = await Space.new(fleet.admin, "drained")
    outcomes = fleet.outcomes["drained"]
    outcomes["train"], good = RUNS_ON, outcomes["train"]
    await make(life, "h100", nodes=2, storage=SHARED)
    await life.wait(lambda s: (s.get("attempts") or [{}])[0].get("folder"))
    await fleet.evict((await gang(life))[1])
    again = await gang(life, 2)
    outcomes["train"] = good
    status = await life.phase("Trained")
    assert [a["outcome"] for a in status["attempts"]] == ["Disrupted", "Succeeded"]
    assert (charged(status), len(again)) == ({"disruption": 1}, 2)


async def test_a_gang_that_answers_and_makes_no_progress_is_ended_and_starts_again(fleet: Fleet) -> None:
    life = await Space.new(fleet.admin, "stands")
    fleet.scripts["stands"] = lambda pod: Outcome(never=True) if pod["metadata"]["labels"][names.ATTEMPT] == "1" else None
    told = {"state": "training", "step": 7, "totalSteps": 50, "secondsPerStep": 60.0, "quietSeconds": 1100.0}
    fleet.tells["stands"] = lambda _: told
    await make(life, "h100", nodes=2, gpus=2)
    first = await life.wait(lambda s: (s.get("training") or {}).get("step") == 7)
    assert first["attempts"][0]["outcome"] == "Running", "twenty of its steps take 1,200 s"
    fleet.tells["stands"] = lambda _: {**told, "quietSeconds": 1201.0}
    await life.wait(lambda s: s["attempts"][0]["outcome"] == "Failed")
    fleet.tells["stands"] = lambda _: {**told, "quietSeconds": 1.0}
    status = await life.phase("Trained")
    ended = status["attempts"][0]
    assert (ended["failureClass"], charged(status), len(status["attempts"])) == ("stalled", {"error": 1}, 2)
    assert "(step 7, training); 1200 s are borne" in ended["message"]
    assert await life.pods(f"bot-{status['revision']}-a1") == [], "its ranks are gone"


async def test_pods_that_do_not_start_are_let_go_of_with_the_reason(fleet: Fleet) -> None:
    """A gang for which there is no machine, and a fetch whose image cannot be pulled: for ever, and for a while."""
    never, late = await Space.new(fleet.admin, "never"), await Space.new(fleet.admin, "late")
    fleet.images = lambda image: image != "trainer:1"
    await make(late, "h100", gpus=1, deadlines={"start": "2s"})
    await late.wait(lambda s: (s.get("revisions") or [{}])[0].get("tries", {}).get("fetch") == 2)
    status = await late.wait(lambda s: s.get("reason") == "ImageUnavailable")
    assert "pods of Job bot-" in ready(status)["message"]
    assert "do not start on their machines after 2s: pod bot-" in ready(status)["message"]
    fleet.images = lambda _: True
    await fleet.admin.patch(NODE, None, "nvidia-h200-2", {"metadata": {"labels": {"pool": "taken"}}})
    busy = {"containers": [{"name": "a", "image": "a", "resources": {"limits": {"nvidia.com/gpu": "7"}}}], "nodeName": "nvidia-h200-2"}
    await fleet.admin.create(kinds.POD, {"metadata": {"name": "busy", "namespace": "never"}, "spec": busy})
    taken = {"nodeSelector": {"pool": "taken"}, "tolerations": [{"operator": "Exists"}]}
    await make(never, "h200", deadlines={"schedule": "2s"}, retries={"infrastructure": 0}, pods=taken)
    status = await never.phase("Failed")
    assert (status["reason"], status["attempts"][0]["failureClass"], charged(status)) == (
        "RetriesExhausted", "infrastructure", {"infrastructure": 1},
    )  # fmt: skip
    assert "have no machine after 2s: pod bot-" in ready(status)["message"]
    assert "1 Insufficient nvidia.com/gpu" in ready(status)["message"]
    assert "raise deadlines.schedule" in ready(status)["message"]

    async def gone() -> bool:
        return not [j for j in await fleet.admin.list(kinds.JOB, "never") if j["metadata"]["name"].endswith("-a1")]

    await until(gone, what="the end of the Job that nobody waits for any more")
    status = await late.phase("Trained")
    assert charged(status)["infrastructure"] >= 1


async def test_ranks_that_stop_without_a_queue_end_their_attempt_uncharged(fleet: Fleet) -> None:
    life = await Space.new(fleet.admin, "stopped")
    fleet.scripts["stopped"] = lambda pod: Outcome(code=25) if pod["metadata"]["labels"][names.ATTEMPT] == "1" else None
    await make(life, "h100", nodes=2, gpus=2)
    status = await life.phase("Trained")
    assert [a["outcome"] for a in status["attempts"]] == ["Disrupted", "Succeeded"]
    assert charged(status) == {"disruption": 1}


async def test_a_machine_on_which_two_attempts_failed_is_left_for_a_fuller_one(fleet: Fleet) -> None:
    life = await Space.new(fleet.admin, "broken")
    bad, good = "nvidia-h200-0", "nvidia-h200-1"
    for name, cordoned in ((bad, False), (good, True)):
        await fleet.admin.patch(NODE, None, name, {"metadata": {"labels": {"pool": "pair"}}, "spec": {"unschedulable": cordoned}})
    fleet.scripts["broken"] = lambda pod: Outcome(code=24) if pod["spec"]["nodeName"] == bad else None
    await make(life, "h200", pods={"nodeSelector": {"pool": "pair"}, "tolerations": [{"operator": "Exists"}]})
    busy = {"containers": [{"name": "a", "image": "a", "resources": {"requests": {"cpu": "64", "memory": "700Gi"}}}], "nodeName": good}
    await fleet.admin.create(kinds.POD, {"metadata": {"name": "busy", "namespace": "broken"}, "spec": busy})
    await life.wait(lambda s: len([a for a in s.get("attempts") or () if a["outcome"] == "Failed"]) == 2)
    await fleet.admin.patch(NODE, None, good, {"spec": {"unschedulable": False}})
    status = await life.phase("Trained")
    assert [a.get("node") for a in status["attempts"]][:2] == [bad, bad]
    assert places(await gang(life, 3)) == [good]
    assert charged(status) == {"infrastructure": 2}


async def test_a_gang_of_which_a_part_alone_has_room_is_tried_on_another_machine_soon(fleet: Fleet) -> None:
    life = await Space.new(fleet.admin, "crowded")
    small, large = "nvidia-h100-pcie-0", "nvidia-h100-80gb-hbm3-0"
    for name, cordoned in ((small, False), (large, True)):
        await fleet.admin.patch(NODE, None, name, {"metadata": {"labels": {"pool": "crowd"}}, "spec": {"unschedulable": cordoned}})
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists"}]  # not of what is cordoned
    await make(life, "h100", nodes=2, gpus=4, pods={"nodeSelector": {"pool": "crowd"}, "tolerations": tolerations})
    await life.wait(lambda s: (s.get("attempts") or [{}])[0].get("folder") and s.get("reason") == "Unschedulable")
    await fleet.admin.patch(NODE, None, large, {"spec": {"unschedulable": False}})
    since = time.monotonic()
    status = await life.wait(lambda s: s["attempts"][0]["outcome"] != "Running")
    assert time.monotonic() - since < 60, "not ten minutes"
    ended = status["attempts"][0]
    assert (ended["outcome"], ended["node"]) == ("Disrupted", small)
    assert "didn't match pod affinity rules" in ended["message"]
    status = await life.phase("Trained")
    assert places(await gang(life, 2)) == [large, large]
    assert (len(status["attempts"]), charged(status)) == (2, {"disruption": 1})


async def test_a_queue_admits_suspends_and_resumes_one_attempt(fleet: Fleet) -> None:
    """The test is the queue: it changes `suspend` alone, as Kueue does."""
    life = await Space.new(fleet.admin, "queued")
    outcomes = fleet.outcomes["queued"]
    outcomes["train"], good = RUNS_ON, outcomes["train"]
    await make(life, "h100", nodes=2, storage=SHARED, compute={"queueName": "team"})
    status = await life.phase("Queued")
    assert "attempt 1 waits for admission to queue team" in ready(status)["message"]
    job = f"bot-{status['revision']}-a1"

    async def suspend(value: bool) -> None:
        await fleet.admin.patch(kinds.JOB, "queued", job, {"spec": {"suspend": value}})

    assert await life.pods(job) == []
    await suspend(False)
    first = (await life.wait(lambda s: s["attempts"][0].get("folder")))["attempts"][0]["folder"]
    await gang(life)
    await suspend(True)
    status = await life.wait(lambda s: s.get("phase") == "Queued" and "goes on from its last checkpoint" in ready(s)["message"])

    async def away() -> bool:
        return await life.pods(job) == []

    await until(away, what="the end of the ranks")
    found = await fleet.admin.get(kinds.JOB, "queued", job)
    assert found is not None
    assert [c["type"] for c in found["status"]["conditions"] if c["status"] == "True"] == ["Suspended"]
    outcomes["train"] = good
    await suspend(False)
    status = await life.phase("Trained")
    (attempt,) = status["attempts"]
    assert attempt["outcome"] == "Succeeded"
    assert attempt["folder"] != first
    assert charged(status) == {}
