"""`make e2e-kills`: every kind of pod deleted at random moments of whole runs; prints what was lost as one line of JSON.

Each round is a FineTune's life (fetch … train … roll out … bake), during which pods of one kind are deleted, now with
their grace, now at once (SIGKILL). It ends well when it is Live with one attempt succeeded; training may lose at most one
checkpoint interval a kill; users may lose only what was in flight on the deleted pod. Of a router killed at once the
window is reported, in which its address was still given out.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Final

import aiohttp

from demo.cluster import OPERATOR_NAMESPACE
from tests.chaos import pods
from tests.chaos.pods import Kill
from tests.e2e.world import Call, Object, Space, installed, labelled_rows, spec

CHECKPOINT_SECONDS: Final = 5.0
SAVE_SECONDS: Final = 3.0  # a checkpoint interval and the time of a save is what a kill may cost
LIFE_SECONDS: Final = 900.0
ROUTER_WINDOW_SECONDS: Final = 10.0
NAMESPACE: Final = "e2e-kills"
OPERATOR: Final = "operator"


@dataclass(frozen=True)
class Kind:
    """A kind of pod: where it is found, in which phases it is worth killing, how often in one life."""

    name: str
    selector: str
    phases: tuple[str, ...]
    kills: int


ALL_PHASES: Final = ("Fetching", "Preparing", "ScoringBaseline", "Training", "Evaluating", "Deploying", "RollingOut", "Baking")
KINDS: Final = (
    Kind(OPERATOR, "app.kubernetes.io/name=finetune-operator", ALL_PHASES, 5),
    Kind("training rank", "finetune.dev/stage=train", ("Training",), 3),
    Kind("router", "finetune.dev/component=router", ("RollingOut", "Baking", "Live"), 3),
    Kind("model server", "finetune.dev/component=arm", ("RollingOut", "Baking", "Live"), 3),
)


@dataclass(frozen=True)
class Sample:
    """A step that rank 0 of an attempt said it had done."""

    at: float
    folder: str
    step: int


@dataclass
class Report:
    """What all rounds came to."""

    kills: int = 0
    ended_well: bool = True
    lost_seconds_max: float = 0.0
    failed_requests_not_in_flight: int = 0
    router_window_seconds: float = 0.0
    requests: int = 0
    samples: int = 0
    by_kind: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Round:
    """One life with kills of one kind."""

    def __init__(self, space: Space, kind: Kind, dice: random.Random) -> None:
        self.kind, self.dice = kind, dice
        self.finetune = space.finetune(f"life-{kind.name.replace(' ', '-')}")
        self.kills: list[Kill] = []
        self.calls: list[Call] = []
        self.samples: list[Sample] = []

    async def live(self) -> Object:
        """Apply it, kill, and wait for its end."""
        self.finetune.apply(long_life())
        killer = asyncio.create_task(self._kill())
        others = (asyncio.create_task(self._call()), asyncio.create_task(self._sample()))
        try:
            status = await self.finetune.phase("Live", "Rejected", "Failed", seconds=LIFE_SECONDS)
            with suppress(TimeoutError):
                await asyncio.wait_for(killer, 60 if "Live" in self.kind.phases else 0.1)
            await asyncio.sleep(5)
            return await self.finetune.phase("Live", "Rejected", "Failed", seconds=60) if status["phase"] == "Live" else status
        finally:
            for task in (killer, *others):
                task.cancel()
            await asyncio.gather(killer, *others, return_exceptions=True)

    async def _kill(self) -> None:
        for number in range(self.kind.kills):
            await self.finetune.until("a phase to kill in", self._worth_it, seconds=LIFE_SECONDS)
            await asyncio.sleep(self.dice.uniform(1, 8))
            await asyncio.to_thread(self._delete_one, at_once=number % 2 == 1)
            await asyncio.sleep(self.dice.uniform(6, 12))

    def _worth_it(self, status: Object) -> bool:
        """Is it in one of the phases? A rank is worth killing once its attempt trains: before, there is nothing to lose."""
        if status.get("phase") not in self.kind.phases:
            return False
        attempts, training = status.get("attempts") or [{}], status.get("training") or {}
        return self.kind.name != "training rank" or training.get("attempt") == attempts[-1].get("number")

    def _delete_one(self, *, at_once: bool) -> None:
        namespace = OPERATOR_NAMESPACE if self.kind.name == OPERATOR else self.finetune.space.name
        selector = self.kind.selector if self.kind.name == OPERATOR else f"{self.kind.selector},finetune.dev/name={self.finetune.name}"
        found = pods.running(self.finetune.kubectl, namespace, selector)
        if not found:
            return
        kill = pods.delete(self.finetune.kubectl, namespace, self.dice.choice(found), self.kind.name, at_once=at_once)
        self.kills.append(kill)
        print(
            f"  {self.finetune.name}: {self.finetune.status().get('phase')}: deleted {kill.pod}{' at once' if at_once else ''}", flush=True
        )

    async def _sample(self) -> None:
        """Ask rank 0 for its step, for ever: what was done is known as of its last answer, every few seconds on two cores."""
        rank_0 = "finetune.dev/stage=train,batch.kubernetes.io/job-completion-index=0"
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1)) as session:
            while True:
                for pod in await asyncio.to_thread(self.finetune.children, "pods", rank_0):
                    if pod["status"].get("phase") == "Running" and pod["status"].get("podIP"):
                        await self._ask(session, pod["status"]["podIP"])
                await asyncio.sleep(0.4)

    async def _ask(self, session: aiohttp.ClientSession, address: str) -> None:
        with suppress(aiohttp.ClientError, TimeoutError, ValueError):
            async with session.get(f"http://{address}:8080/progress") as answer:
                said = await answer.json(content_type=None)
            if said.get("folder") and said.get("step"):
                self.samples.append(Sample(time.monotonic(), said["folder"], int(said["step"])))

    async def _call(self) -> None:
        moved = ("RollingOut", "Baking", "Live")
        await self.finetune.until("users to be served", lambda s: s["phase"] in moved, seconds=LIFE_SECONDS)
        async with self.finetune.users(every=0.1) as users:
            self.calls = users.calls
            await asyncio.Event().wait()

    def judge(self, status: Object, report: Report) -> None:
        """Add this life to the report."""
        report.kills += len(self.kills)
        report.by_kind[self.kind.name] = len(self.kills)
        report.requests += len(self.calls)
        report.samples += len(self.samples)
        for attempt in status.get("attempts", []):
            steps = [s.step for s in self.samples if s.folder == attempt.get("folder")]
            seen = f"steps {steps[0]}…{steps[-1]} seen in {len(steps)} samples" if steps else "no step seen"
            print(f"  attempt {attempt['number']} {attempt['outcome']}: from step {attempt.get('resumedFromStep', 0)}, {seen}", flush=True)
        succeeded = [a for a in status.get("attempts", []) if a["outcome"] == "Succeeded"]
        if status["phase"] != "Live" or len(succeeded) != 1 or not self.kills:
            report.ended_well = False
            report.problems.append(
                f"{self.finetune.name} ended as {status['phase']} with {len(self.kills)} kills: {self.finetune.describe()[-1500:]}"
            )
        report.lost_seconds_max = round(max(report.lost_seconds_max, lost(status.get("attempts", []), self.samples)), 1)
        stray, window = not_in_flight(self.calls, self.kills)
        report.router_window_seconds = max(report.router_window_seconds, window)
        report.failed_requests_not_in_flight += len(stray)
        report.problems += [f"{self.finetune.name}: {call.user}: {call.problem}" for call in stray[:5]]


def long_life() -> Object:
    """A life in which training takes a minute or two, with a checkpoint every five seconds."""
    training = {"epochs": 60, "learningRate": "1e-3", "maxSequenceLength": 256, "tokensPerStep": 512, "earlyStopping": {"patience": 1000}}
    steps = [{"weight": 10, "hold": "12s"}, {"weight": 50, "hold": "12s"}, {"weight": 100, "hold": "5s"}]
    guards = {"maxErrorRatePercent": 50, "maxLatencyRegressionPercent": 1000, "minRequests": 0}
    return spec(
        training={**training, "checkpoint": {"every": f"{CHECKPOINT_SECONDS:.0f}s"}},
        compute={"nodes": 2, "cpu": "100m", "memory": "2Gi"},
        serving={"replicas": 2, "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}}},
        rollout={"steps": steps, "guards": guards, "bake": "10s", "progressDeadline": "300s"},
    )


def lost(attempts: Sequence[Object], samples: Sequence[Sample]) -> float:
    """The most seconds of training that any attempt did and its successor had to do again, by the steps that were seen."""
    return max((_lost(before, after, samples) for before, after in itertools.pairwise(attempts)), default=0.0)


def _lost(before: Object, after: Object, samples: Sequence[Sample]) -> float:
    mine = [s for s in samples if s.folder == before.get("folder")]
    resumed = after.get("resumedFromStep") or 0
    again = [s.at for s in mine if s.step >= resumed]
    return mine[-1].at - again[0] if again else 0.0


def not_in_flight(calls: Sequence[Call], kills: Sequence[Kill]) -> tuple[list[Call], float]:
    """(failed requests that no kill explains, seconds in which an address of a router killed at once was still given out)."""
    stray: list[Call] = []
    window = 0.0
    for call in (c for c in calls if not c.ok):
        if any(call.sent <= kill.done and call.answered >= kill.at for kill in kills):
            continue
        router = [k for k in kills if k.kind == "router" and k.at_once and 0 <= call.sent - k.at <= ROUTER_WINDOW_SECONDS]
        if router:
            window = max(window, call.answered - router[-1].at)
        else:
            stray.append(call)
    return stray, window


async def rounds(kinds: Sequence[Kind], seed: int) -> Report:
    """All lives, one after the other."""
    report = Report()
    with installed() as world, world.namespace(NAMESPACE) as space:
        space.config_map("rows", {"train.jsonl": labelled_rows(200)})
        for kind in kinds:
            print(f"{kind.name}: a whole life with {kind.kills} kills", flush=True)
            begun = time.monotonic()
            life = Round(space, kind, random.Random(f"{seed}/{kind.name}"))
            status = await life.live()
            life.judge(status, report)
            print(f"  ended as {status['phase']} after {time.monotonic() - begun:.0f} s", flush=True)
            space.world.kubectl("-n", space.name, "delete", "finetune", life.finetune.name, "--wait=true", seconds=120)
    return report


def main() -> int:
    """0 when every life ended well and nothing was lost that may not be."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.kills", description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the moments and the victims; printed")
    parser.add_argument("--kind", choices=[k.name for k in KINDS], action="append", help="only these kinds")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    report = asyncio.run(rounds([k for k in KINDS if not options.kind or k.name in options.kind], options.seed))
    for line in report.problems:
        print(f"✗ {line}", flush=True)
    found = asdict(report)
    found.pop("problems")
    print(json.dumps(found))
    allowed = CHECKPOINT_SECONDS + SAVE_SECONDS
    return 0 if report.ended_well and not report.failed_requests_not_in_flight and report.lost_seconds_max <= allowed else 1


if __name__ == "__main__":
    sys.exit(main())
