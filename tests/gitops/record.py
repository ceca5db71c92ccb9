"""Record the FineTunes of `recorded/` anew: `python3 tools/env.py dev python -m tests.gitops.record` (a minute or two).

The operator's process on a real control plane; each life is driven in a namespace of its own, all at once, and the API server's
watch tells every state that any of them went through.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml
from finetune_operator import kinds, names
from finetune_operator.kinds import FINETUNE, Kind

from devcluster import nodebinary
from devcluster.controlplane import ControlPlane
from tests.gitops.recorded import ANSWERS, FOLDER, Object, name
from tests.integration.engine import Operator, Space, administrator, install, until
from tests.integration.kubelet import Admin, Kubelet
from tests.unit.operator.helpers import scores
from tests.unit.operator.world import Outcome

QUOTA = Kind("", "v1", "resourcequotas", "ResourceQuota")
CRD = Kind("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False)
ROLLOUT = {
    "steps": [{"weight": 10, "hold": "4s"}, {"weight": 100}], "bake": "4s", "progressDeadline": "2m", "guards": {"minRequests": 50},
}  # fmt: skip
SERVED = {"serving": {"replicas": 1}, "rollout": ROLLOUT}
HEAD_START = 5.0  # seconds: kubectl does not say when it watches, and the first states last a moment
RUNS_ON = [Outcome(never=True)]


class Lives:
    """One life each, by what becomes of it."""

    def __init__(self, admin: Admin, kubelet: Kubelet) -> None:
        self.admin, self.kubelet = admin, kubelet
        self.failing: set[tuple[str, str]] = set()
        kubelet.fails = lambda namespace, arm: (namespace, arm) in self.failing

    async def all(self) -> None:
        """Each in a namespace of its name."""
        lives = (
            self.live, self.trained, self.not_needed, self.gate, self.guard, self.undecided, self.paused, self.short, self.queued,
            self.suspended, self.missing, self.unschedulable, self.retries, self.unreadable, self.deleted,
        )  # fmt: skip
        await asyncio.gather(*(self._alone(life) for life in lives))

    async def _alone(self, life: object) -> None:
        where = life.__name__.replace("_", "-")  # type: ignore[attr-defined]
        await life(await Space.new(self.admin, where))  # type: ignore[operator]

    async def live(self, life: Space) -> None:
        await life.make(**SERVED)
        await life.phase("Live")
        await life.edit(serving={"replicas": 2})
        await life.wait(lambda s: s["observedGeneration"] == 2)

    async def trained(self, life: Space) -> None:
        await life.make()
        await life.phase("Trained")

    async def not_needed(self, life: Space) -> None:
        await life.make(evaluation={"metrics": [{"type": "ExactMatch"}], "skipTrainingIfBaselineAtLeast": "0.1"})
        await life.phase("NotNeeded")

    async def gate(self, life: Space) -> None:
        self.kubelet.outcomes[life.name]["evaluate"] = [Outcome(scores(0.1, (-0.1, 0.1)))]
        await life.make()
        await life.phase("Rejected")

    async def guard(self, life: Space) -> None:
        await life.make(**SERVED)
        rollout = (await life.wait(lambda s: s.get("rollout")))["rollout"]
        self.failing.add((life.name, rollout["arm"]))
        await life.phase("Rejected")

    async def undecided(self, life: Space) -> None:
        await life.make(**SERVED)
        rollout = (await life.wait(lambda s: s.get("rollout")))["rollout"]
        self.failing |= {(life.name, rollout["arm"]), (life.name, rollout["stable"])}
        await life.phase("Paused")

    async def paused(self, life: Space) -> None:
        """By the annotation."""
        await life.make(**{**SERVED, "rollout": {**ROLLOUT, "steps": [{"weight": 10, "hold": "10m"}, {"weight": 100}]}})
        rollout = (await life.wait(lambda s: (s.get("rollout") or {}).get("weight") == 10))["rollout"]
        await self.admin.annotate(FINETUNE, life.name, "bot", {names.CONTROL: f"pause:{rollout['name']}"})
        await life.phase("Paused")

    async def short(self, life: Space) -> None:
        """More pods are asked for in a step than there is room for."""
        steps = [{"weight": 10, "hold": "4s"}, {"weight": 100}]
        unguarded = {"steps": steps, "progressDeadline": "10s", "guards": {"minRequests": 0}}
        await life.make(**{**SERVED, "rollout": {**ROLLOUT, **unguarded}})
        await life.wait(lambda s: (s.get("rollout") or {}).get("weight") == 10)
        quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": life.name}}
        await self.admin.create(QUOTA, {**quota, "spec": {"hard": {"pods": "0"}}})
        await life.edit(serving={"replicas": 3})
        await life.phase("Paused")

    async def queued(self, life: Space) -> None:
        """A queue suspends the training Job before any of its pods is there."""
        outcomes = self.kubelet.outcomes[life.name]
        outcomes["baseline"], good = RUNS_ON, outcomes["baseline"]
        await life.make()
        revision = (await life.phase("ScoringBaseline"))["revision"]
        await until(lambda: life.pods(f"bot-{revision}-baseline"), what="the pod that scores the base")
        quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": life.name}}
        await self.admin.create(QUOTA, {**quota, "spec": {"hard": {"pods": "0"}}})
        outcomes["baseline"] = good
        job = f"bot-{revision}-a1"
        await until(lambda: self.admin.get(kinds.JOB, life.name, job), what="the training Job")
        await self.admin.patch(kinds.JOB, life.name, job, {"spec": {"suspend": True}})
        await life.phase("Queued")

    async def suspended(self, life: Space) -> None:
        self.kubelet.outcomes[life.name]["train"] = RUNS_ON
        await life.make()
        await life.wait(lambda s: (s.get("attempts") or [{}])[0].get("folder"))
        await life.edit(suspend=True)
        await life.phase("Suspended")

    async def missing(self, life: Space) -> None:
        await life.make(data={"train": {"source": "configmap://rows/train.jsonl"}})
        await life.phase("Pending")

    async def unschedulable(self, life: Space) -> None:
        await life.make(pods={"nodeSelector": {"example.com/pool": "none"}})
        await life.wait(lambda s: s.get("reason") == "Unschedulable")

    async def retries(self, life: Space) -> None:
        self.kubelet.outcomes[life.name]["train"] = [Outcome(code=1)]
        await life.make(retries={"error": 0})
        await life.phase("Failed")

    async def unreadable(self, life: Space) -> None:
        """Made under an older CRD, which allowed more."""
        await life.make(training={"learningRate": "fast"})
        await life.phase("Failed")

    async def deleted(self, life: Space) -> None:
        """Somebody else's finalizer keeps it."""
        await life.make(suspend=True)
        await life.phase("Suspended")
        await self.admin.patch(FINETUNE, life.name, "bot", {"metadata": {"finalizers": ["example.com/audit"]}})
        await self.admin.delete(FINETUNE, life.name, "bot")
        await life.phase("Terminating")
        await self.admin.patch(FINETUNE, life.name, "bot", {"metadata": {"finalizers": None}})


async def allow_more(admin: Admin) -> None:
    """Let the CRD take what it refuses: a learning rate that is no number."""
    found = await admin.get(CRD, None, "finetunes.finetune.dev")
    assert found is not None
    versions = found["spec"]["versions"]
    training = versions[0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["training"]
    del training["x-kubernetes-validations"], training["properties"]["learningRate"]["pattern"]
    await admin.patch(CRD, None, "finetunes.finetune.dev", {"spec": {"versions": versions}})


async def drive(plane: ControlPlane, folder: Path, watched: Path) -> None:
    async with administrator(plane) as admin, Operator(plane, folder, "recorded") as operator:
        await allow_more(admin)  # which ends all watches
        await operator.leading()
        async with Kubelet(admin) as kubelet:
            with watching(plane, watched):
                await asyncio.sleep(HEAD_START)
                await Lives(admin, kubelet).all()


@contextlib.contextmanager
def watching(plane: ControlPlane, file: Path) -> Iterator[None]:
    """Write every state of every FineTune to the file."""
    command = [nodebinary.ensure(), "kubectl", f"--kubeconfig={plane.kubeconfig}", "get", FINETUNE.plural, "-A", "--watch", "-o", "json"]
    with file.open("w") as sink, subprocess.Popen(command, stdout=sink) as watch:
        try:
            yield
        finally:
            watch.terminate()


def states(text: str) -> Iterator[Object]:
    """The objects that a watch told, in their order."""
    decoder, at = json.JSONDecoder(), 0
    while at < len(text):
        found, at = decoder.raw_decode(text, at)
        yield found
        at += len(text[at:]) - len(text[at:].lstrip())


def write(finetune: Object, file: Path) -> None:
    meta = {k: v for k, v in finetune["metadata"].items() if k != "managedFields"}
    file.write_text(yaml.safe_dump({**finetune, "metadata": meta}, sort_keys=False, width=130, allow_unicode=True))


def main() -> int:
    with tempfile.TemporaryDirectory() as temporary, ControlPlane() as plane:
        folder = Path(temporary)
        install(plane)
        watched = folder / "watched.json"
        asyncio.run(drive(plane, folder, watched))
        seen: dict[str, Object] = {}
        for finetune in states(watched.read_text()):
            seen.setdefault(name(finetune), finetune)
    if missing := set(ANSWERS) - set(seen):
        print(f"not seen: {', '.join(sorted(missing))}; seen: {', '.join(sorted(seen))}", file=sys.stderr)
        return 1
    FOLDER.mkdir(exist_ok=True)
    for file in ANSWERS:
        write(seen[file], FOLDER / f"{file}.yaml")
    print(f"{len(ANSWERS)} written; also seen: {', '.join(sorted(set(seen) - set(ANSWERS)))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
