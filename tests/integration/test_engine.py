"""The operator's process on a real API server, Job controller and scheduler: change, then see. Writes are counted in the audit log.

It has the rights of the chart's ServiceAccount in all of them.
"""

from __future__ import annotations

import asyncio
import copy
import json
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from finetune_operator import errors, kinds, names

from devcluster.controlplane import ControlPlane
from tests.integration.engine import NAMESPACE, Audit, Operator, Space, install, ready, until
from tests.integration.kubelet import TERMINAL, Admin, Kubelet, storage_class
from tests.unit.operator.world import Outcome

ROLLOUT = {"steps": [{"weight": 10, "hold": "2s"}, {"weight": 100}], "bake": "2s", "progressDeadline": "2m", "guards": {"minRequests": 50}}
SERVED = {"serving": {"replicas": 2}, "rollout": ROLLOUT}
RUNS_ON = [Outcome(never=True)]


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane() as started:
        install(started)
        yield started


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of kubeconfigs and logs; a user without a name may read it."""
    made = tmp_path_factory.mktemp("operators")
    made.chmod(0o755)
    return made


@pytest.fixture
def audit(plane: ControlPlane) -> Audit:
    made = Audit(plane.audit_log)
    made.mark()
    return made


@pytest.fixture(scope="module")
def shared(plane: ControlPlane, folder: Path) -> Iterator[Operator]:
    """For the tests that leave their operator as it is."""
    operator = Operator(plane, folder, "shared")
    operator.start()
    yield operator
    operator.process.kill()
    operator.process.wait()


@pytest.fixture
async def operator(shared: Operator) -> Operator:
    await shared.leading()
    assert shared.process.poll() is None, shared.log.read_text()[-3000:]
    return shared


QUOTA = kinds.Kind("", "v1", "resourcequotas", "ResourceQuota")
CRD = kinds.Kind("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False)


def of_a_served_life(status: dict[str, Any]) -> dict[tuple[str, str], int]:
    """Everything that one revision's life makes, each once."""
    revision = status["liveRevision"]
    arms = [arm["name"] for arm in status["arms"]]
    jobs = [*(f"bot-{revision}-{tail}" for tail in ("fetch", "prepare", "baseline", "a1", "evaluate")), "bot-clean-1"]
    made = [
        ("persistentvolumeclaims", "bot-work"), ("configmaps", "bot-router"),
        *(("poddisruptionbudgets", f"bot-{name}") for name in ("router", *arms)),
        *(("jobs", job) for job in jobs),
        *(("controllerrevisions", f"bot-{name}") for name in (revision, *arms)),
        *(("deployments", f"bot-{name}") for name in ("router", *arms)),
        *(("services", name) for name in ("bot", f"bot-{revision}-a1", *(f"bot-{arm}" for arm in arms))),
    ]  # fmt: skip
    assert len(arms) == 2
    return dict.fromkeys(made, 1)


async def test_a_whole_life_then_rest_and_a_restart(
    admin: Admin, kubelet: Kubelet, audit: Audit, plane: ControlPlane, folder: Path
) -> None:
    """As a user without a name or a home, as in its image."""
    life = await Space.new(admin, "life")
    async with Operator(plane, folder, "alone", nobody=True) as operator:
        await operator.leading()
        await life.make(**SERVED)
        status = await life.phase("Live")
        assert ready(status)["status"] == "True"
        await settled(life)
        assert audit.made("life") == of_a_served_life(status)
        assert {r.code for r in audit.writes()} <= {200, 201}, "no write was refused, none was in vain"
        writes = audit.writes("life")
        print(f"{len(writes)} writes in a life, {sum(r.resource == 'finetunes/status' for r in writes)} of them to the status")
        assert len(writes) < 70

        before = await life.children()
        audit.mark()
        await asyncio.sleep(20)
        assert audit.writes() == [], "at rest it writes nothing but its Lease"
        assert len([r for r in audit.requests() if r.verb in ("get", "list")]) < 20, "at rest it hardly reads"

        text = await operator.metrics()
        assert 'finetune_phase{name="bot",namespace="life",phase="Live"} 1.0' in text
        assert 'finetune_api_writes_total{kind="Job",verb="create"} 6.0' in text

        started = time.monotonic()
        assert await operator.signal(signal.SIGTERM) == 0
        assert time.monotonic() - started < 8
        lease = await admin.get(kinds.LEASE, NAMESPACE, "finetune-operator")
        assert lease is not None
        assert lease["spec"].get("holderIdentity", "") == "", "given back"

    async with Operator(plane, folder, "again") as operator:
        await operator.leading()
        await asyncio.sleep(4)
        assert [r for r in audit.writes() if r.resource != "secrets"] == [], "a restart writes nothing"
        assert await life.children() == before


async def settled(life: Space) -> None:
    """Wait until nothing of it has changed for three seconds."""
    last, since = await life.children(), time.monotonic()
    while time.monotonic() - since < 3:
        await asyncio.sleep(0.5)
        now = await life.children()
        if now != last:
            last, since = now, time.monotonic()


async def test_killed_after_every_few_writes_it_makes_each_child_once(
    admin: Admin, kubelet: Kubelet, audit: Audit, plane: ControlPlane, folder: Path
) -> None:
    life = await Space.new(admin, "kills")
    kills, seen = 0, 0
    async with Operator(plane, folder, "mortal") as operator:
        await operator.leading()
        await life.make(**SERVED)
        while (status := await life.status()).get("phase") != "Live":
            count = len(audit.writes("kills"))
            if count - seen >= 6:
                await operator.signal(signal.SIGKILL)
                kills, seen = kills + 1, len(audit.writes("kills"))
                operator.start()
            assert operator.process.poll() is None
            await asyncio.sleep(0.02)
        print(f"{kills} kills")
        assert kills >= 4
        await until(lambda: _arms_are(life, "router", status["liveArm"]), what="the end of the base arm")
        await settled(life)
        wanted, made, there = of_a_served_life(status), audit.made("kills"), await life.children()
        # The audit log may miss the answer to a request whose sender was killed: what was made is there, then.
        assert {**made, **{child: 1 for child in there if child not in made and child[0] != "finetunes"}} == wanted


async def test_a_frozen_leader_is_succeeded_and_writes_nothing_when_it_thaws(
    admin: Admin, kubelet: Kubelet, audit: Audit, plane: ControlPlane, folder: Path
) -> None:
    life = await Space.new(admin, "leaders")
    kubelet.outcomes["leaders"]["train"], good = RUNS_ON, kubelet.outcomes["leaders"]["train"]
    async with Operator(plane, folder, "first") as first, Operator(plane, folder, "second") as second:
        await until(lambda: first.leads() or second.leads(), what="leading")
        leader, candidate = (first, second) if first.leads() else (second, first)
        await candidate.ready()
        assert not candidate.leads()
        await life.make()
        await life.wait(lambda s: (s.get("attempts") or [{}])[0].get("folder"))

        leader.process.send_signal(signal.SIGSTOP)
        frozen = time.monotonic()
        mine = {r.by for r in audit.writes("leaders")}
        kubelet.outcomes["leaders"]["train"] = good
        await candidate.leading()
        assert 9 < time.monotonic() - frozen < 40, "not before the Lease has run out"
        await life.phase("Trained")

        audit.mark()
        leader.process.send_signal(signal.SIGCONT)
        assert await asyncio.to_thread(leader.process.wait, 20) == 1, "it ends, for another one leads"
        assert [r for r in audit.writes() if r.by in mine] == []
        assert candidate.process.poll() is None

        assert await candidate.signal(signal.SIGTERM) == 0


async def test_the_api_server_goes_away_and_comes_back(
    admin: Admin, kubelet: Kubelet, audit: Audit, plane: ControlPlane, operator: Operator
) -> None:
    life = await Space.new(admin, "outage")
    kubelet.outcomes["outage"]["train"], good = RUNS_ON, kubelet.outcomes["outage"]["train"]
    await life.make()
    await life.wait(lambda s: (s.get("attempts") or [{}])[0].get("folder"))
    await asyncio.to_thread(plane.restart_api_server, seconds_away=1)
    kubelet.outcomes["outage"]["train"] = good
    status = await life.phase("Trained")
    assert [a["outcome"] for a in status["attempts"]] == ["Succeeded"]
    assert operator.process.poll() is None
    assert max(audit.made("outage").values()) == 1


async def test_what_is_somebody_elses_is_not_taken_over_by_its_labels_and_mounted_by_nobody(
    admin: Admin, kubelet: Kubelet, operator: Operator
) -> None:
    """A ConfigMap with the routers' name, and a Job with our labels and the fetch Job's name, which would run for ever."""
    life, other = await Space.new(admin, "theirs"), await Space.new(admin, "ours")
    await other.make()
    fetch = f"bot-{(await other.phase('Trained'))['revision']}-fetch"
    documents = {"metadata": {"name": "bot-router", "namespace": "theirs"}, "data": {"cds.json": "theirs"}}
    config = await admin.create(kinds.CONFIGMAP, documents)
    pod = {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}
    meta = {"name": fetch, "namespace": "theirs", "labels": names.labels("bot", "stage", **{names.STAGE: "fetch"})}
    job = await admin.create(kinds.JOB, {"metadata": meta, "spec": {"suspend": True, "template": {"spec": pod}}})

    await life.make(**{**SERVED, "rollout": {**ROLLOUT, "progressDeadline": "5s"}})
    status = await life.wait(lambda s: s.get("reason") == "NameTaken")
    assert f"Job {fetch} exists already and is not this FineTune's (it has its labels, and no controller" in ready(status)["message"]
    assert (await admin.get(kinds.JOB, "theirs", fetch) or {})["metadata"]["uid"] == job["metadata"]["uid"]
    await admin.remove(kinds.JOB, "theirs", fetch)

    status = await life.wait(lambda s: s.get("reason") == "NameTaken" and s["phase"] == "Deploying")
    assert "ConfigMap bot-router exists already and is not this FineTune's" in ready(status)["message"]
    await asyncio.sleep(8)
    status = await life.status()
    assert (status["phase"], status["reason"]) == ("Deploying", "NameTaken"), "no image is blamed"
    assert await admin.get(kinds.DEPLOYMENT, "theirs", "bot-router") is None
    assert await admin.get(kinds.CONFIGMAP, "theirs", "bot-router") == config
    await admin.remove(kinds.CONFIGMAP, "theirs", "bot-router")
    await life.phase("Live")


async def test_what_is_missing_taken_or_refused_is_named_and_it_goes_on_by_itself(
    admin: Admin, kubelet: Kubelet, operator: Operator
) -> None:
    life, narrow, full = await Space.new(admin, "bad"), await Space.new(admin, "narrow"), await Space.new(admin, "full")
    foreign = {"apiVersion": "v1", "metadata": {"name": "taken", "namespace": "bad"}}
    service = await admin.create(kinds.SERVICE, {**foreign, "kind": "Service", "spec": {"ports": [{"port": 1}]}})
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "standard"}
    claim_meta = {"name": "claimed-work", "namespace": "bad"}
    volume = await admin.create(kinds.PVC, {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": claim_meta, "spec": claim})
    for where, resource in ((narrow, "pods"), (full, "persistentvolumeclaims")):
        quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "quota", "namespace": where.name}}
        await admin.create(QUOTA, {**quota, "spec": {"hard": {resource: "0"}}})
        await until(lambda where=where: admin.get(QUOTA, where.name, "quota"), what="the quota")

    await life.make("rows", data={"train": {"source": "configmap://rows/train.jsonl"}})
    await life.make("classy", storage={"storageClassName": "fast"})
    await life.make("taken", **SERVED)
    await life.make("claimed")
    await narrow.make()
    await full.make()

    status = await life.wait(lambda s: s.get("reason") == "SourceMissing", "rows")
    assert "configmap://rows/train.jsonl: ConfigMap rows does not exist in namespace bad" in ready(status)["message"]
    status = await life.wait(lambda s: s.get("reason") == "StorageClassMissing", "classy")
    assert "StorageClass fast does not exist" in ready(status)["message"]
    status = await life.wait(lambda s: s.get("reason") == "NameTaken", "claimed")
    assert "PersistentVolumeClaim claimed-work exists already and is not this FineTune's" in ready(status)["message"]
    status = await life.wait(lambda s: s.get("reason") == "NameTaken", "taken")
    assert "Service taken exists already and is not this FineTune's" in ready(status)["message"]
    for where in (narrow, full):
        status = await where.wait(lambda s: s.get("reason") == "Refused")
        assert "exceeded quota: quota" in ready(status)["message"]
        assert ready(status)["status"] == "False"

    await admin.create(kinds.CONFIGMAP, {"metadata": {"name": "rows", "namespace": "bad"}, "data": {"train.jsonl": "{}"}})
    await admin.create(kinds.STORAGE_CLASS, storage_class("fast"))
    for where in (narrow, full):
        await admin.remove(QUOTA, where.name, "quota")
    assert await admin.get(kinds.SERVICE, "bad", "taken") == service
    found = await admin.get(kinds.PVC, "bad", "claimed-work")
    assert found is not None
    assert (found["metadata"]["uid"], found["metadata"].get("labels")) == (volume["metadata"]["uid"], None)
    await admin.remove(kinds.SERVICE, "bad", "taken")
    await admin.remove(kinds.PVC, "bad", "claimed-work")
    for where, name, phase in (
        (life, "rows", "Trained"), (life, "classy", "Trained"), (life, "claimed", "Trained"), (life, "taken", "Live"),
        (full, "bot", "Trained"), (narrow, "bot", "Trained"),
    ):  # fmt: skip
        await where.phase(phase, name)


async def test_one_that_cannot_be_read_disturbs_no_other(admin: Admin, kubelet: Kubelet, plane: ControlPlane, operator: Operator) -> None:
    """Made under an older CRD that allowed more."""
    life = await Space.new(admin, "unreadable")
    strict = json.loads(plane.kubectl("get", "crd", "finetunes.finetune.dev", "-o", "json"))["spec"]["versions"]
    lax = copy.deepcopy(strict)
    training = lax[0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["training"]
    del training["x-kubernetes-validations"], training["properties"]["learningRate"]["pattern"]
    await admin.patch(CRD, None, "finetunes.finetune.dev", {"spec": {"versions": lax}})

    async def made(name: str, **spec: Any) -> bool:
        try:
            await life.make(name, **spec)
        except (errors.Invalid, errors.Unavailable):  # 503 while the CRD's storage is made anew
            return False
        return True

    await until(partial(made, "old", training={"learningRate": "fast"}), what="the laxer CRD")
    await admin.patch(CRD, None, "finetunes.finetune.dev", {"spec": {"versions": strict}})
    await until(partial(made, "good"), what="the stricter CRD")
    status = await life.wait(lambda s: s.get("reason") == "InvalidSpec", "old")
    assert "spec.training.learningRate" in ready(status)["message"]
    await life.phase("Trained", "good")
    await life.edit("old", training={"learningRate": "1e-4"})
    await life.phase("Trained", "old")


async def test_lost_pods_jobs_and_suspension(admin: Admin, kubelet: Kubelet, operator: Operator) -> None:
    life = await Space.new(admin, "lost")
    outcomes = kubelet.outcomes["lost"]
    good = dict(outcomes)
    outcomes["prepare"], outcomes["train"] = RUNS_ON, RUNS_ON
    kubelet.grace = 2.0  # what is deleted lives on for a while
    kubelet.progress = {"stage": "train", "step": 10, "totalSteps": 100, "loss": 1.5, "percent": 10, "etaSeconds": 90}
    await life.make()
    revision = (await life.wait(lambda s: s.get("phase") == "Preparing"))["revision"]
    job = await until(lambda: admin.get(kinds.JOB, "lost", f"bot-{revision}-prepare"))
    await admin.delete(kinds.JOB, "lost", job["metadata"]["name"])

    async def another() -> bool:
        found = await admin.get(kinds.JOB, "lost", job["metadata"]["name"])
        return found is not None and found["metadata"]["uid"] != job["metadata"]["uid"]

    await until(another, what="another Job")
    outcomes["prepare"] = good["prepare"]

    status = await life.wait(lambda s: (s.get("training") or {}).get("step") == 10)
    assert "step 10 of 100, loss 1.5000" in ready(status)["message"]
    (rank,) = [p for p in await life.pods(f"bot-{revision}-a1") if p["metadata"]["labels"][INDEX] == "1"]
    await admin.delete(kinds.POD, "lost", rank["metadata"]["name"])
    await until(lambda: _follows(life, f"bot-{revision}-a1", f"bot-{revision}-a2"), what="the second attempt")
    status = await life.wait(lambda s: s["attempts"][1].get("folder"))
    charges = status["revisions"][0]["charges"]
    assert (status["attempts"][0]["outcome"], charges.pop("disruption"), set(charges.values())) == ("Disrupted", 1, {0})

    await life.edit(suspend=True)
    await life.phase("Suspended")
    await life.edit(suspend=False)
    third = await until(lambda: _follows(life, f"bot-{revision}-a2", f"bot-{revision}-a3"), what="the third attempt")
    outcomes["train"] = good["train"]
    status = await life.phase("Trained")
    assert [a["outcome"] for a in status["attempts"]] == ["Disrupted", "Suspended", "Succeeded"]
    config = json.loads(third["spec"]["template"]["metadata"]["annotations"][names.RUN_CONFIG])
    assert config["run"]["resumeFrom"] == [status["attempts"][1]["folder"], status["attempts"][0]["folder"]]

    volume = await admin.get(kinds.PVC, "lost", "bot-work")
    await admin.delete(kinds.FINETUNE, "lost", "bot")
    await until(lambda: _only_the_volume(life), what="the end of its children")
    await life.make()
    await life.phase("Trained")
    kept = await admin.get(kinds.PVC, "lost", "bot-work")
    assert volume is not None
    assert kept is not None
    assert kept["metadata"]["uid"] == volume["metadata"]["uid"]


INDEX = "batch.kubernetes.io/job-completion-index"


async def _follows(life: Space, before: str, after: str) -> dict[str, Any] | None:
    """The Job `after` once it is there: the gang before it must have ended by then."""
    job = await life.admin.get(kinds.JOB, life.name, after)
    if job is not None:
        alive = [p for p in await life.pods(before) if p["status"]["phase"] not in TERMINAL]
        assert alive == [], "one gang at a time"
    return job


async def _arms_are(life: Space, *arms: str) -> bool:
    return {name for resource, name in await life.children() if resource == "deployments"} == {f"bot-{arm}" for arm in arms}


async def _only_the_volume(life: Space) -> bool:
    return list(await life.children()) == [("persistentvolumeclaims", "bot-work")]
