"""Checkpoints as transactions, and the walk back to the newest valid one.

Invariant: a checkpoint is used only if COMMIT, manifest, every digest and the run's fingerprint fit; nothing is
unpickled.
"""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from finetune_trainer import exits, layout
from finetune_trainer.progress import timestamp
from finetune_trainer.train import curve
from finetune_trainer.train.curve import Curve
from finetune_trainer.train.optimizer import Tensors

WEIGHTS, OPTIMIZER, BEST = "weights.safetensors", "optimizer.safetensors", "best.safetensors"
REFERENCE, STATE = "reference.safetensors", "state.json"
CURVES = ("losses", "validations")
PAUSES = (1.0, 8.0, 20.0)  # seconds before a read of a failing volume is tried again
T = TypeVar("T")


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


def newest(attempts: Sequence[Path], fingerprint: str) -> tuple[Path, Checkpoint] | None:
    """The newest valid checkpoint of the same run among `attempts`; what is broken or foreign is passed over, and what a disk cannot read
    for good where there is another one. Raises OSError (of the volume or its server) rather than that steps are lost."""
    unread: Exception | None = None
    for folder in read_again(lambda: found(attempts)):
        try:
            checkpoint = read(folder)
        except (layout.Corrupt, OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            if may_pass(error):
                if exits.volume_errno(error) != errno.EIO:
                    raise
                unread = unread or error
            print(f"checkpoint passed over{', STEPS ARE LOST' if may_pass(error) else ''}: {folder}: {error}", flush=True)
            continue
        if checkpoint.state.fingerprint == fingerprint:
            return folder, checkpoint
        print(f"checkpoint passed over: {folder}: it belongs to another run", flush=True)
    if unread is not None:
        raise unread
    return None


def read(folder: Path) -> Checkpoint:
    """`load`, tried again where the volume fails."""
    with exits.about(f"while {folder} was read"):
        return read_again(lambda: load(folder))


def read_again(work: Callable[[], T]) -> T:
    """What `work` returns, which reads from the volume: tried again for half a minute where it fails as what may pass does."""
    for pause in PAUSES:
        try:
            return work()
        except (OSError, SafetensorError) as error:
            if not may_pass(error):
                raise
            print(f"tried again in {pause:g} s: {error}", flush=True)
        time.sleep(pause)
    return work()


def may_pass(error: Exception) -> bool:
    """Whether it is the volume, or what it is reached by, that failed, not the checkpoint that is missing or wrong."""
    return exits.volume_errno(error) is not None or (isinstance(error, OSError) and not isinstance(error, layout.MISSING))


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
