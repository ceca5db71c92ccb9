"""The kubelet by hand, with ranks that train: each revision's attempts fail as told, resume where they may, and say how far they are."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

from finetune_operator import names

from tests.integration.kubelet import Admin, Kubelet, Object, run_config, stamp

TRAIN_SECONDS: Final = 1.2
STEPS: Final = 50
EVERY: Final = 10  # steps between checkpoints
FAILS_AT: Final = 35
INDEX: Final = "batch.kubernetes.io/job-completion-index"
QUIET_SECONDS: Final = 901.0  # what a rank that hangs says: more than the operator bears
EXITS: Final = {"error": 1, "outOfMemory": 21, "infrastructure": 24}


@dataclass
class Faults:
    """Of one namespace: how its first attempts end, revision by revision; which arms answer their users at all."""

    attempts: list[list[str]] = field(default_factory=list)
    revisions: list[str] = field(default_factory=list)  # in the order in which they were first seen to train
    good_arms: set[str] | None = None  # None: all
    # By revision and attempt, of each of its gangs: the step from which it went on, and by what its micro-batch is divided.
    began: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    def ending(self, revision: str, attempt: int) -> str | None:
        """The failure class of this attempt, "disruption", or None when it ends well."""
        if revision not in self.revisions:
            self.revisions.append(revision)
        index = self.revisions.index(revision)
        wanted = self.attempts[index] if index < len(self.attempts) else []
        return wanted[attempt - 1] if attempt <= len(wanted) else None


class Nodes(Kubelet):
    """Any number of lives, each in its namespace."""

    def __init__(self, admin: Admin) -> None:
        super().__init__(admin)
        self.faults: dict[str, Faults] = defaultdict(Faults)
        self.fails = self._fails
        self.saved: dict[str, int] = {}  # folder → step of its last checkpoint
        self._begun: dict[str, float] = {}

    def _fails(self, namespace: str, arm: str) -> bool:
        good = self.faults[namespace].good_arms
        return good is not None and arm not in good

    async def _start(self, pod: Object) -> None:
        self._begun[pod["metadata"]["uid"]] = asyncio.get_running_loop().time()
        labels = pod["metadata"]["labels"]
        if labels.get(names.STAGE) == "train" and labels.get(INDEX) == "0":
            attempt = f"{labels[names.REVISION]} a{labels[names.ATTEMPT]}"
            faults = self.faults[pod["metadata"]["namespace"]]
            faults.began.setdefault(attempt, []).append((self._resumed(pod), run_config(pod)["training"]["microBatchDivisor"]))
        await super()._start(pod)

    def said(self, pod: Object) -> Object:
        resumed, ending = self._resumed(pod), self._ending(pod)
        share = min(1.0, (asyncio.get_running_loop().time() - self._begun[pod["metadata"]["uid"]]) / TRAIN_SECONDS)
        step = resumed + int((_last_step(ending) - resumed) * share)
        quiet = QUIET_SECONDS if ending == "stalled" and share == 1.0 else 0.0
        return {
            "stage": "train", "state": "training", "totalSteps": STEPS, "step": step, "percent": 2 * step, "quietSeconds": quiet,
            "resumedFromStep": resumed or None,
        }  # fmt: skip

    def _resumed(self, pod: Object) -> int:
        """The newest checkpoint in the folders that its configuration names, or names the beginning of."""
        named = run_config(pod)["run"].get("resumeFrom") or ()
        return max(
            (step for folder, step in self.saved.items() for start in named if folder == start or folder.startswith(f"{start}-")), default=0
        )

    def _ending(self, pod: Object) -> str | None:
        labels = pod["metadata"]["labels"]
        return self.faults[pod["metadata"]["namespace"]].ending(labels[names.REVISION], int(labels[names.ATTEMPT]))

    async def _go_on(self, pod: Object, stage: str) -> None:
        if stage != "train":
            await super()._go_on(pod, stage)
            return
        meta = pod["metadata"]
        if asyncio.get_running_loop().time() - self._begun.setdefault(meta["uid"], 0.0) < TRAIN_SECONDS:
            return
        ending, rank = self._ending(pod), meta["labels"][INDEX]
        if ending is None:
            await self._status(pod, self._trained(pod))
        elif rank == "0" and ending == "disruption":
            self._save(pod)
            gone = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "lastTransitionTime": stamp()}
            await self._end(pod, 143, {}, [gone])
        elif ending == "stalled":  # it hangs until its pod is deleted
            self._save(pod)
            return
        elif rank == "0":
            self._save(pod)
            error = {"class": ending, "reason": "Chaos", "message": "as the script says", "fix": ""}
            await self._end(pod, EXITS[ending], {"stage": "train", "error": error, "step": FAILS_AT}, [])
        if ending is None or rank == "0":
            await self._silence(meta["uid"])

    def _save(self, pod: Object) -> None:
        folder = f"{run_config(pod)['run']['path']}-{pod['metadata']['uid'][:8]}"
        self.saved[folder] = FAILS_AT // EVERY * EVERY

    def _trained(self, pod: Object) -> Object:
        good = self.outcomes[pod["metadata"]["namespace"]]["train"][0]
        resumed = {"resumedFromStep": self._resumed(pod)} if self._resumed(pod) else {}
        return self._ended(pod, type(good)({**good.result, **resumed}))

    async def _end(self, pod: Object, code: int, result: Object, conditions: list[Object]) -> None:
        good = self.outcomes[pod["metadata"]["namespace"]]["train"][0]
        status = self._ended(pod, type(good)(result, code=code))
        await self._status(pod, {**status, "conditions": conditions})


def _last_step(ending: str | None) -> int:
    return STEPS if ending is None else FAILS_AT
