"""`make chaos-training`: the same FineTune trained twice over two pods, once left alone and once with its pods killed again and again.

A kill deletes a rank's pod, in turns with its grace and at once (SIGKILL to its frozen processes, so that nothing is saved), at a
random step of the training, or while an attempt starts. The killed FineTune must end with the loss of the other one (relative
difference at most `TOLERANCE`; resuming is exact), with the same rows in the same order of steps (`order` in the trainer's result: a
digest of what was passed through the model, carried on by each checkpoint), and no kill may cost more steps than lie between two
checkpoints. Each kill is a disruption, none is charged. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from demo.kube import child, reader
from tests.chaos import pods
from tests.chaos.pods import Kill
from tests.e2e.world import FineTune, Object, Space, installed, spec

NAMESPACE: Final = "chaos-training"
KILLS: Final = 30
EPOCHS_A_KILL: Final = 1
CHECKPOINT_STEPS: Final = 10
LAST_STEPS: Final = 30
TOLERANCE: Final = 1e-6
LIFE_SECONDS: Final = 3600.0
LOOK_SECONDS: Final = 2.0
STARTING_SHARE: Final = 0.2  # of the kills come while an attempt starts
STARTING_SECONDS: Final = 6.0
STEP_SECONDS: Final = 0.5
NODES: Final = 2
KIND: Final = "training rank"
INDEX: Final = "batch.kubernetes.io/job-completion-index"
STEP: Final = re.compile(r"step (\d+)/(\d+) loss (\S+) ")
ATTEMPT: Final = re.compile(r"-a(\d+)-\d+-[a-z0-9]+$")

Losses = dict[int, dict[int, float]]


@dataclass(frozen=True)
class Outcome:
    """A training that ended: what rank 0 said of it, how its attempts ended, and the losses that they told, by attempt and step."""

    result: Object
    totals: Object
    losses: Losses
    kills: Sequence[Kill] = ()


@dataclass(frozen=True)
class Comparison:
    """The killed training beside the one that was left alone."""

    kills: int
    loss_difference: float
    same_order: bool
    lost_steps_max: int
    checkpoint_interval_steps: int
    same_weights: bool
    other_losses: int
    disruptions: int
    charged: int

    @property
    def problems(self) -> list[str]:
        """What is not as it must be."""
        found = {
            f"the losses differ by {self.loss_difference:.2e}": self.loss_difference > TOLERANCE,
            "rows were trained on in another order": not self.same_order,
            f"a kill cost {self.lost_steps_max} steps": self.lost_steps_max > self.checkpoint_interval_steps,
            f"{self.other_losses} steps told another loss": self.other_losses > 0,
            f"{self.kills} kills, and {self.disruptions} disruptions": self.kills != self.disruptions,
            f"{self.charged} attempts were charged": self.charged > 0,
        }
        return [problem for problem, holds in found.items() if holds]

    def line(self) -> str:
        """The last line of the report."""
        return json.dumps(dict(vars(self)))


def compare(calm: Outcome, killed: Outcome) -> Comparison:
    """What the kills changed."""
    return Comparison(
        kills=len(killed.kills),
        loss_difference=max(_difference(calm.result[name], killed.result[name]) for name in ("loss", "validationLoss")),
        same_order=bool(calm.result["order"]) and calm.result["order"] == killed.result["order"],
        lost_steps_max=lost_steps(killed.losses),
        checkpoint_interval_steps=CHECKPOINT_STEPS,
        same_weights=calm.result["digest"] == killed.result["digest"],
        other_losses=other_losses(calm.losses, killed.losses),
        disruptions=int(killed.totals.get("disruption", 0)),
        charged=sum(int(killed.totals.get(name, 0)) for name in ("error", "outOfMemory", "infrastructure")),
    )


def _difference(one: float, other: float) -> float:
    return abs(one - other) / max(abs(one), 1e-12)


def lost_steps(losses: Losses) -> int:
    """The most steps that an attempt told and a later one had to do again. Attempts that told none are passed over."""
    told = [losses[attempt] for attempt in sorted(losses) if losses[attempt]]
    return max((max(before) - min(after) + 1 for before, after in itertools.pairwise(told)), default=0)


def other_losses(calm: Losses, killed: Losses) -> int:
    """Steps of any attempt with another loss than the calm training's, beyond the last decimal that is told."""
    expected = {step: loss for told in calm.values() for step, loss in told.items()}
    pairs = [(expected.get(step), loss) for told in killed.values() for step, loss in told.items()]
    return sum(one is not None and abs(one - loss) > 1.5e-6 + TOLERANCE * abs(one) for one, loss in pairs)


def training_spec(sharding: str, epochs: int) -> Object:
    """A training of two ranks that serves nobody, with a checkpoint every few steps and nothing that would end it early."""
    return spec(
        training={
            "epochs": epochs,
            "learningRate": "1e-3",
            "maxSequenceLength": 256,
            "tokensPerStep": 512,
            "earlyStopping": {"patience": 1000},
            "checkpoint": {"everySteps": CHECKPOINT_STEPS},
        },
        compute={"nodes": NODES, "cpu": "100m", "memory": "2Gi", "sharding": sharding},
        serving=None,
        rollout=None,
    )


def rows(count: int = 160) -> str:
    """JSONL: answers that cannot be learnt by heart at once, so that the order of rows shows in every loss."""
    pairs = (
        (f"Where is printer {number}?", f"Printer {number} is in room {number * 37 % 101} on floor {number % 7}.")
        for number in range(count)
    )
    return "".join(json.dumps({"prompt": prompt, "completion": completion}) + "\n" for prompt, completion in pairs)


async def train(finetune: FineTune, manifest: Object, wanted: Sequence[Target] = ()) -> Outcome:
    """Apply it and wait for its end, killing its pods where it is wanted."""
    begun = time.monotonic()
    await asyncio.to_thread(finetune.apply, manifest)
    ranks, done = Ranks(finetune), list[Kill]()
    async with asyncio.TaskGroup() as group:
        beside = [group.create_task(work) for work in (ranks.watch(), _kill(ranks, wanted, done))]
        status = await finetune.until("training that ended", _ended, seconds=LIFE_SECONDS, every=LOOK_SECONDS)
        for task in beside:
            task.cancel()
    assert _outcomes(status)[-1:] == ["Succeeded"], finetune.describe()
    assert len(done) == len(wanted), f"it ended after {len(done)} of {len(wanted)} kills"
    said = await asyncio.to_thread(result, finetune)
    seconds = time.monotonic() - begun
    print(f"{finetune.name}, {len(done)} kills: {said['step']} steps, loss {said['loss']:.6f}, {seconds:.0f} s", flush=True)
    return Outcome(said, status.get("totals") or {}, ranks.losses, done)


def _outcomes(status: Object) -> list[str]:
    return [attempt["outcome"] for attempt in status.get("attempts") or []]


def _ended(status: Object) -> bool:
    return status["phase"] == "Failed" or _outcomes(status)[-1:] == ["Succeeded"]


@dataclass(frozen=True)
class Target:
    """When to kill: once this share of the training is done (0: while the attempt starts), and so many seconds later; which rank,
    and how."""

    share: float
    wait: float
    rank: int
    at_once: bool


def targets(kills: int, dice: random.Random) -> list[Target]:
    """As many, in the order of the training."""
    moments = sorted(dice.random() for _ in range(kills))
    return [_target(moment, place % 2 == 1, dice) for place, moment in enumerate(moments)]


def _target(moment: float, at_once: bool, dice: random.Random) -> Target:
    starting = dice.random() < STARTING_SHARE
    wait = dice.uniform(0, STARTING_SECONDS if starting else STEP_SECONDS)
    return Target(0 if starting else moment, wait, dice.randrange(NODES), at_once)


class Ranks:
    """The pods that train, as a watch tells of them, and the losses that rank 0 of each attempt writes."""

    def __init__(self, finetune: FineTune) -> None:
        self.finetune = finetune
        self.losses: Losses = {}
        self.steps = 0  # of the whole training, once an attempt has told
        self._running: dict[str, Object] = {}

    async def watch(self) -> None:
        """Keep up with them, for ever."""
        space, read = self.finetune.space.name, set[str]()
        labels = f"finetune.dev/stage=train,finetune.dev/name={self.finetune.name}"
        async with asyncio.TaskGroup() as group:
            async for event in self.finetune.kubectl.watch("-n", space, "pods", "-l", labels, "--output-watch-events"):
                pod = event["object"]
                name, runs = pod["metadata"]["name"], event["type"] != "DELETED" and _runs(pod)
                self._running.pop(name, None)
                if runs:
                    self._running[name] = pod
                if runs and _rank(pod) == 0 and name not in read:
                    read.add(name)
                    group.create_task(self._read(name, self.losses.setdefault(_attempt(name), {})))

    async def gang(self, after: int) -> tuple[int, list[str]]:
        """The number and the pods of the newest attempt that came after another, once both its pods run."""
        while True:
            attempts = [_attempt(name) for name in self._running]
            if attempts and attempts.count(newest := max(attempts)) == NODES and newest > after:
                return newest, sorted(name for name in self._running if _attempt(name) == newest)
            await asyncio.sleep(0.05)

    async def at(self, share: float, after: int) -> tuple[int, list[str]]:
        """The gang that came after another, once it has told this share of the training (of all but the last steps, so that there is
        something left to kill); the next one where it was lost to something else before."""
        while True:
            attempt, names = await self.gang(after)
            if not share or (self.steps and self.told(attempt) > share * (self.steps - LAST_STEPS)):
                return attempt, names
            await asyncio.sleep(0.05)

    def told(self, attempt: int) -> int:
        """The last step that an attempt has told."""
        return max(self.losses.get(attempt, {}), default=0)

    async def _read(self, pod: str, losses: dict[int, float]) -> None:
        kubectl = self.finetune.kubectl
        async with child([*kubectl.command, "-n", self.finetune.space.name, "logs", "-f", pod], kubectl.env) as process:
            while line := await reader(process).readline():
                if said := STEP.match(line.decode(errors="replace")):
                    losses[int(said[1])] = float(said[3])
                    self.steps = int(said[2])


def _runs(pod: Object) -> bool:
    return pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]


def _rank(pod: Object) -> int:
    return int(pod["metadata"]["labels"][INDEX])


def _attempt(pod: str) -> int:
    found = ATTEMPT.search(pod)
    assert found, pod
    return int(found[1])


async def _kill(ranks: Ranks, wanted: Sequence[Target], done: list[Kill]) -> None:
    last = 0
    for target in wanted:
        attempt, names = await ranks.at(target.share, last)
        await asyncio.sleep(target.wait)
        finetune, pod = ranks.finetune, names[target.rank]
        kill = pods.crash if target.at_once else partial(pods.delete, at_once=False)
        done.append(await asyncio.to_thread(kill, finetune.kubectl, finetune.space.name, pod, KIND))
        print(f"  kill {len(done)}: {pod}{' at once' if target.at_once else ''} after step {ranks.told(attempt)}", flush=True)
        last = attempt


def result(finetune: FineTune) -> Object:
    """The termination message of rank 0 of the attempt that succeeded."""
    for pod in finetune.children("pods", f"finetune.dev/stage=train,{INDEX}=0"):
        for container in pod["status"].get("containerStatuses", []):
            ended = container["state"].get("terminated", {})
            if ended.get("exitCode") == 0:
                return dict(json.loads(ended["message"]))
    raise AssertionError(f"no rank 0 of {finetune.name} ended well\n{finetune.describe()}")


async def twins(space: Space, sharding: str, kills: int, epochs: int, seed: int) -> Comparison:
    """The same training, left alone and killed so often; both at the same time."""
    space.config_map("rows", {"train.jsonl": rows()})
    manifest = training_spec(sharding, epochs)
    killed = train(space.finetune("killed"), manifest, targets(kills, random.Random(seed)))
    return compare(*await asyncio.gather(train(space.finetune("calm"), manifest), killed))


async def run(sharding: str, kills: int, seed: int) -> Comparison:
    """On the built-in node, in a namespace of its own."""
    with installed() as world, world.namespace(NAMESPACE) as space:
        return await twins(space, sharding, kills, max(4, EPOCHS_A_KILL * kills), seed)


def main() -> int:
    """0 when nothing but time was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.training", description=__doc__)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--sharding", default="ZeRO2", choices=["DDP", "ZeRO1", "ZeRO2", "ZeRO3"])
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the moments and the victims; printed")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    found = asyncio.run(run(options.sharding, options.kills, options.seed))
    for problem in found.problems:
        print(f"✗ {problem}", flush=True)
    print(found.line())
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
