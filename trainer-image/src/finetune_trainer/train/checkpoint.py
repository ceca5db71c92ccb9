"""Checkpoints as transactions, and the walk back to the newest valid one.

Invariant: a checkpoint is used only if COMMIT, manifest, every digest and the run's fingerprint fit; nothing is
unpickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from finetune_trainer import layout
from finetune_trainer.progress import timestamp
from finetune_trainer.train import curve
from finetune_trainer.train.curve import Curve
from finetune_trainer.train.optimizer import Tensors

WEIGHTS, OPTIMIZER, BEST = "weights.safetensors", "optimizer.safetensors", "best.safetensors"
REFERENCE, STATE = "reference.safetensors", "state.json"
CURVES = ("losses", "validations")


@dataclass(frozen=True)
class State:
    """Where a run stands after `step` finished steps. The data position and the random state of step s are functions
    of (seed, s), so they need no more than `step` and `seed`. `loss` is the mean of the `recent` steps' losses, `order` the digest
    of all rows in the order of their steps, the curves are of all losses so far."""

    step: int
    seed: int
    fingerprint: str
    tokens: int
    seconds: float
    loss: float | None
    validation_loss: float | None
    best_step: int | None
    best_loss: float | None
    worse: int
    skipped: int
    recent: tuple[float, ...] = ()
    order: str = ""
    losses: Curve = field(default_factory=Curve)
    validations: Curve = field(default_factory=Curve)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: the weights that train, as `best` those with the lowest validation loss so far, and as `reference`
    what the objective computed before training began."""

    state: State
    weights: Tensors
    optimizer: Tensors
    best: Tensors | None
    reference: Tensors = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return sum(size_of(tensors) for tensors in (self.weights, self.optimizer, self.best or {}, self.reference))


def size_of(tensors: Tensors) -> int:
    """Bytes."""
    return sum(value.nbytes for value in tensors.values())


def save(attempt: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Commit a checkpoint and drop all but the `keep` newest of this attempt; returns its folder."""
    folder = layout.checkpoint(attempt, checkpoint.state.step)
    with layout.transaction(folder) as work:
        save_file(checkpoint.weights, work.folder / WEIGHTS)
        save_file(checkpoint.optimizer, work.folder / OPTIMIZER)
        if checkpoint.best is not None:
            save_file(checkpoint.best, work.folder / BEST)
        if checkpoint.reference:
            save_file(checkpoint.reference, work.folder / REFERENCE)
        layout.write_json(work.folder / STATE, asdict(checkpoint.state))
        work.facts.update(step=checkpoint.state.step, time=timestamp())
    for old in found([attempt])[keep:]:
        (old / layout.COMMIT).unlink(missing_ok=True)
        shutil.rmtree(old, ignore_errors=True)
    return folder


def found(attempts: Iterable[Path]) -> list[Path]:
    """Complete checkpoint folders of all attempts, the highest step first, the earlier attempt on a tie."""
    folders = [
        (-int(folder.name.removeprefix("step-")), place, folder)
        for place, attempt in enumerate(attempts)
        for folder in layout.checkpoints(attempt).glob("step-????????")
        if layout.is_complete(folder) and folder.name.removeprefix("step-").isdigit()
    ]
    return [folder for _, _, folder in sorted(folders)]


def newest(attempts: Iterable[Path], fingerprint: str) -> tuple[Path, Checkpoint] | None:
    """The newest valid checkpoint of the same run among `attempts`; what is broken or foreign is passed over."""
    for folder in found(attempts):
        try:
            checkpoint = load(folder)
        except (layout.Corrupt, OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            print(f"checkpoint passed over: {folder}: {error}", flush=True)
            continue
        if checkpoint.state.fingerprint == fingerprint:
            return folder, checkpoint
        print(f"checkpoint passed over: {folder}: it belongs to another run", flush=True)
    return None


def load(folder: Path) -> Checkpoint:
    """Read and verify one checkpoint. Raises Corrupt, OSError, ValueError or SafetensorError."""
    layout.verify(folder)
    best, reference = folder / BEST, folder / REFERENCE
    state = json.loads((folder / STATE).read_text())
    return Checkpoint(
        State(**{**state, "recent": tuple(state.get("recent", ())), **{name: curve.read(state.get(name)) for name in CURVES}}),
        load_file(folder / WEIGHTS),
        load_file(folder / OPTIMIZER),
        load_file(best) if best.is_file() else None,
        load_file(reference) if reference.is_file() else {},
    )
