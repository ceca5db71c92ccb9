"""What is cut off, and what must be there afterwards: every place where the trainer writes what somebody relies on later."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from finetune_trainer import clean, fetch, layout, transfer
from finetune_trainer.config import CleanRun, RunConfig
from finetune_trainer.data import prepare
from finetune_trainer.train import artifact, checkpoint, optimizer
from finetune_trainer.train.checkpoint import Checkpoint, State
from finetune_trainer.train.model import trained

from tests.crash.operations import apart
from tests.trainer import lives, support

BEFORE, AFTER = "before", "after"
FINGERPRINT = "this run"
KEEP = 2
REVISION, OTHER = "1f2e3d4c", "0a0b0c0d"


@dataclass(frozen=True)
class Scenario:
    """A folder as it is `before`, the `work` that is cut off, and the `state` of what is left: BEFORE or AFTER, and AssertionError
    where it is neither; each runs in a process of its own. `newest` is the folder whose files are damaged, where damage is to be
    passed over."""

    name: str
    before: Callable[[Path], object]
    work: Callable[[Path], object]
    state: Callable[[Path], str]
    newest: Callable[[Path], Path] | None = None


def contents(step: int) -> Checkpoint:
    """A checkpoint with every part that one can have; its numbers are its step's own."""
    torch.manual_seed(step)
    parts = [{f"{part}.{place}": torch.randn(7, 11) for place in range(2)} for part in ("w", "o", "b", "r")]
    state = State(step, 17, FINGERPRINT, 100 * step, 0.5 * step, 2.0 / step, 3.0 / step, step, 3.0 / step, 0, 0)
    return Checkpoint(state, *parts)


def same(found: Checkpoint, wanted: Checkpoint) -> bool:
    """Whether two checkpoints are the same bit for bit."""
    pairs = [(getattr(found, part) or {}, getattr(wanted, part) or {}) for part in ("weights", "optimizer", "best", "reference")]
    bits = [(name, a[name], b.get(name)) for a, b in pairs for name in a]
    return (
        found.state == wanted.state
        and all(a.keys() == b.keys() for a, b in pairs)
        and all(a.numpy().tobytes() == b.numpy().tobytes() for _, a, b in bits if b is not None)
    )


def checkpoint_scenario(name: str, earlier: tuple[int, ...], left: Callable[[Path], object] = lambda _: None) -> Scenario:
    """Step 30 is saved where those of `earlier` are; `left` adds what an earlier crash left."""

    def before(folder: Path) -> None:
        (folder / "a1-0b6c1d2e").mkdir(parents=True)
        for step in earlier:
            checkpoint.save(folder / "a1-0b6c1d2e", contents(step), KEEP)
        left(folder / "a1-0b6c1d2e")

    def state(folder: Path) -> str:
        found = checkpoint.newest([folder / "a1-0b6c1d2e"], FINGERPRINT)
        if found is None:
            assert not earlier, "no checkpoint is left"
            return BEFORE
        step = found[1].state.step
        assert step in (30, *earlier[-1:]), f"the newest checkpoint left is of step {step}"
        assert same(found[1], contents(step)), f"the checkpoint of step {step} is another one than was saved"
        return AFTER if step == 30 else BEFORE

    return Scenario(
        name,
        before,
        lambda folder: checkpoint.save(folder / "a1-0b6c1d2e", contents(30), KEEP) and None,
        state,
        lambda folder: layout.checkpoint(folder / "a1-0b6c1d2e", 30),
    )


def _half_saved(attempt: Path) -> None:
    """What a crash before COMMIT leaves, and one while files were written."""
    whole = layout.checkpoint(attempt, 30)
    checkpoint.save(attempt, contents(30), KEEP + 1)
    (whole / layout.COMMIT).unlink()
    shutil.copytree(whole, whole.with_name(f".{whole.name}.tmp-0123456789abcdef"))
    whole.with_name(f".{whole.name}.lock").touch()


class Material:
    """A tiny model, fetched, and rows, prepared: what the scenarios of whole stages begin from. Made once in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.model = folder, support.make_tiny_model(folder / "source")
        self.rows = support.write_rows(folder / "rows.jsonl", support.rows())
        apart(lambda: fetch.main(self.config("fetch", folder)))
        apart(lambda: prepare.main(self.config("prepare", folder)))  # its threads would not live on in what is forked here

    def config(self, stage: str, work: Path, **changes: Any) -> RunConfig:
        """A stage's configuration on the volume `work`."""
        return RunConfig.model_validate(support.make_config(stage, work, self.model, self.rows, **changes))

    def artifact(self, method: str) -> Scenario:
        """The export of a trained model."""
        document = support.make_config("train", self.folder, self.model, self.rows, method__type=method)
        if method == "Full":
            del document["method"]["lora"]
        run = lives.build(document, self.folder / "a0-built")
        weights = optimizer.values(trained(run.model))

        def state(folder: Path) -> str:
            found = artifact.existing([folder / "a1-0b6c1d2e"], FINGERPRINT)
            return BEFORE if found is None else AFTER

        def work(folder: Path) -> None:
            artifact.save(folder / "a1-0b6c1d2e", run.model, weights, {"fingerprint": FINGERPRINT}, self.folder / "models" / "tiny")

        what = "whole model" if method == "Full" else "adapter"
        newest = partial(_within, name="a1-0b6c1d2e/artifact")
        return Scenario(f"artifact, {what}", lambda folder: (folder / "a1-0b6c1d2e").mkdir(parents=True), work, state, newest)

    def fetched(self) -> Scenario:
        """A model that comes from the image."""

        def state(folder: Path) -> str:
            path = folder / "models" / "tiny"
            if fetch.fetched(path) is None:
                return BEFORE
            assert layout.verify(path)["digest"] == layout.verify(self.folder / "models" / "tiny")["digest"], "another model"
            return AFTER

        return Scenario(
            "fetched model",
            lambda folder: folder.mkdir(),
            lambda folder: fetch.main(self.config("fetch", folder)) and None,
            state,
            partial(_within, name="models/tiny"),
        )

    def prepared(self, *, again: bool) -> Scenario:
        """The rows of a data set; `again` where another revision has prepared the same."""
        wanted = _prepared(self.folder / "data" / REVISION)

        def before(folder: Path) -> None:
            folder.mkdir()
            shutil.copytree(self.folder / "models", folder / "models")
            if again:
                prepare.main(self.config("prepare", folder, data__path=str(folder / "data" / OTHER)))

        def state(folder: Path) -> str:
            if again:
                assert _prepared(folder / "data" / OTHER) == wanted, "the other revision's rows are not what they were"
            path = folder / "data" / REVISION
            if not layout.is_complete(path):
                return BEFORE
            try:
                found = _prepared(path)
            except layout.Corrupt as error:
                print(error)
                return BEFORE
            assert found == wanted, "other rows"
            return AFTER

        return Scenario(
            "prepared data, taken over" if again else "prepared data",
            before,
            lambda folder: prepare.main(self.config("prepare", folder)) and None,
            state,
            None if again else partial(_within, name=f"data/{REVISION}"),
        )


def _within(folder: Path, name: str) -> Path:
    return folder / name


def _prepared(folder: Path) -> dict[str, Any]:
    """Name → size and sha256 of the files that the data alone decide. Raises Corrupt."""
    files = layout.verify(folder, layout.DATA_MANIFEST)["files"]
    assert isinstance(files, dict)
    return {name: entry for name, entry in files.items() if not name.startswith("report.")}


DOWNLOAD = bytes(range(256)) * 40


def _download(folder: Path) -> None:
    """A file that comes in blocks, over a connection that breaks once."""
    broken = [False]

    def blocks(offset: int) -> Iterator[bytes]:
        for start in range(offset, len(DOWNLOAD), 1024):
            if start >= 4096 and not broken[0]:
                broken[0] = True
                raise transfer.Broken("the connection ended")
            yield DOWNLOAD[start : start + 1024]

    def ask(offset: int, version: str) -> transfer.Answer:
        start = offset if version == "v1" else 0
        return transfer.Answer(start, len(DOWNLOAD), "v1", blocks(start))

    if not (folder / "file").exists():
        transfer.transfer("file", ask, folder / "file", wait=lambda _: None)


def _downloaded(folder: Path) -> str:
    if not (folder / "file").exists():
        return BEFORE
    assert (folder / "file").read_bytes() == DOWNLOAD, "a file under its final name is not whole"
    return AFTER


def _volume_to_clean(folder: Path) -> None:
    for name in (OTHER, REVISION):
        for attempt, step in (("a1-aaaaaaaa", 10), ("a2-bbbbbbbb", 20)):
            _committed(layout.checkpoint(folder / "revisions" / name / attempt, step))
        _committed(layout.artifact(folder / "revisions" / name / "a2-bbbbbbbb"))
        _committed(folder / "revisions" / name / "evaluations" / "tuned-k")
        _committed(folder / "data" / name)


def _committed(folder: Path) -> None:
    with layout.transaction(folder) as work:
        (work.folder / "content").write_text(folder.name)


def _clean(folder: Path) -> None:
    document = {
        "version": 1,
        "stage": "clean",
        "finetune": {"namespace": "ml", "name": "bot", "uid": "0b6c", "revision": REVISION, "attempt": 1},
        "clean": {"path": str(folder), "folders": [f"revisions/{OTHER}", f"data/{OTHER}"], "checkpointsOf": [], "keep": 0},
    }
    clean.main(CleanRun.model_validate(document))


def _cleaned(folder: Path) -> str:
    """Nothing half counts, what was not to be removed is whole, and scores never outlive what they are of."""
    counting = sorted(str(path.parent.relative_to(folder)) for path in folder.rglob(layout.COMMIT))
    for name in counting:
        layout.verify(folder / name)
    assert sum(REVISION in name for name in counting) == 5, "what was to stay is gone"
    old = [name for name in counting if OTHER in name]
    assert not any("evaluations" in name for name in old) or any("/artifact" in name for name in old), "scores outlive what they are of"
    return BEFORE if list(folder.glob(f"*/{OTHER}")) else AFTER


LIGHT = (
    checkpoint_scenario("first checkpoint", ()),
    checkpoint_scenario("second checkpoint", (20,)),
    checkpoint_scenario("checkpoint, the oldest goes", (10, 20)),
    checkpoint_scenario("checkpoint after a crash", (10, 20), _half_saved),
    Scenario("download", lambda folder: folder.mkdir(), _download, _downloaded),
    Scenario("clean", _volume_to_clean, _clean, _cleaned),
)


def all_scenarios(folder: Path) -> list[Scenario]:
    """Every scenario; those of whole stages work on what is made in `folder`."""
    silent = io.StringIO()
    with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        material = Material(folder)
        stages = [material.artifact("LoRA"), material.artifact("Full"), material.fetched(), material.prepared(again=True)]
        return [*LIGHT, *stages, material.prepared(again=False)]
