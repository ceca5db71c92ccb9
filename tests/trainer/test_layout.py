"""Folders as transactions: what is broken is passed over. (What crashes leave is in test_crash.)"""

from __future__ import annotations

import errno
import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer import exits, layout
from finetune_trainer.config import RunConfig
from finetune_trainer.train import assemble, checkpoint
from finetune_trainer.train.checkpoint import Checkpoint, State

from tests.trainer.support import make_config


def state(step: int, fingerprint: str = "this run") -> State:
    return State(step, 17, fingerprint, step * 100, 1.0, 2.0, None, None, None, 0, 0)


def saved(attempt: Path, step: int, keep: int = 2, fingerprint: str = "this run") -> Path:
    tensors = {"weight": torch.full((2, 2), float(step))}
    return checkpoint.save(attempt, Checkpoint(state(step, fingerprint), tensors, tensors, None), keep)


BREAKS: dict[str, Callable[[Path], object]] = {
    "has no COMMIT": lambda folder: (folder / "COMMIT").unlink(),
    "lost a file": lambda folder: (folder / checkpoint.WEIGHTS).unlink(),
    "has a torn file": lambda folder: os.truncate(folder / checkpoint.OPTIMIZER, 40),
    "has a changed byte": lambda folder: (folder / checkpoint.STATE).write_text((folder / checkpoint.STATE).read_text().replace("2", "3")),
    "has another manifest": lambda folder: (folder / layout.MANIFEST).write_text("{}"),
    "has a COMMIT of nothing": lambda folder: (folder / "COMMIT").write_text(""),
}


@pytest.mark.parametrize("damage", BREAKS.values(), ids=BREAKS)
def test_the_newest_checkpoint_is_passed_over_where_it(damage: Callable[[Path], object], tmp_path: Path) -> None:
    saved(tmp_path, 10)
    damage(saved(tmp_path, 20))
    found = checkpoint.newest([tmp_path], "this run")
    assert found is not None
    assert found[1].state == state(10)


class Volume:
    """Reads of the files in some folders fail with an errno, so many times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failing: dict[Path, tuple[int, float]] = {}
        self.pauses: list[float] = []
        opened = Path.open

        def read(path: Path, *arguments: Any, **named: Any) -> Any:
            number, times = self.failing.get(path.parent, (0, 0))
            if times > 0:
                self.failing[path.parent] = number, times - 1
                raise OSError(number, os.strerror(number), str(path))
            return opened(path, *arguments, **named)

        monkeypatch.setattr(Path, "open", read)
        monkeypatch.setattr(checkpoint.time, "sleep", self.pauses.append)


@pytest.fixture
def volume(monkeypatch: pytest.MonkeyPatch) -> Volume:
    return Volume(monkeypatch)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EACCES, errno.EREMOTEIO, errno.ENFILE])
def test_a_read_that_fails_for_a_while_is_tried_again(number: int, volume: Volume, tmp_path: Path, capsys: Any) -> None:
    saved(tmp_path, 10)
    folder = saved(tmp_path, 20)
    volume.failing[folder] = number, len(checkpoint.PAUSES)
    found = checkpoint.newest([tmp_path], "this run")
    assert found is not None
    assert found[0] == folder
    assert tuple(volume.pauses) == checkpoint.PAUSES
    assert os.strerror(number) in capsys.readouterr().out


def test_a_server_that_stays_away_costs_an_attempt_and_no_steps(volume: Volume, tmp_path: Path) -> None:
    saved(tmp_path, 10)
    volume.failing[saved(tmp_path, 20)] = errno.ESTALE, math.inf
    with pytest.raises(OSError, match="Stale") as found:
        checkpoint.newest([tmp_path], "this run")
    known = exits.classify(found.value)
    assert (type(known), known.reason) == (exits.Infrastructure, "VolumeError")
    assert "step-00000020" in known.message


def test_what_a_disk_cannot_read_for_good_is_passed_over_where_there_is_an_older_one(volume: Volume, tmp_path: Path, capsys: Any) -> None:
    older, folder = saved(tmp_path, 10), saved(tmp_path, 20)
    volume.failing[folder] = errno.EIO, math.inf
    found = checkpoint.newest([tmp_path], "this run")
    assert found is not None
    assert found[0] == older
    assert f"checkpoint passed over, STEPS ARE LOST: {folder}" in capsys.readouterr().out
    volume.failing[older] = errno.EIO, math.inf
    with pytest.raises(OSError, match="Input/output"):
        checkpoint.newest([tmp_path], "this run")


def test_folders_that_cannot_be_listed_are_not_taken_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, volume: Volume) -> None:
    saved(tmp_path, 10)

    def listed(path: Any) -> Any:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", listed)
        with pytest.raises(OSError, match="Stale"):
            checkpoint.newest([tmp_path], "this run")
    assert tuple(volume.pauses) == checkpoint.PAUSES
    assert checkpoint.newest([tmp_path / "never-made"], "this run") is None


def test_checkpoints_of_another_run_are_passed_over(tmp_path: Path) -> None:
    saved(tmp_path, 20, fingerprint="another run")
    assert checkpoint.newest([tmp_path], "this run") is None


def test_the_highest_step_of_all_attempts_counts(tmp_path: Path) -> None:
    saved(tmp_path / "a2-x", 5)
    saved(tmp_path / "a1-x", 30)
    saved(tmp_path / "a0-x", 20)
    found = checkpoint.newest([tmp_path / name for name in ("a2-x", "a1-x", "a0-x", "never-made")], "this run")
    assert found is not None
    assert found[0].parent.parent.name == "a1-x"


def test_as_many_checkpoints_stay_as_are_to_be_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        saved(tmp_path, step, keep=2)
    assert sorted(path.name for path in layout.checkpoints(tmp_path).iterdir()) == ["step-00000030", "step-00000040"]


def test_an_error_inside_a_transaction_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with layout.transaction(tmp_path / "x") as work:
            (work.folder / "half").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_digest_is_of_names_and_contents_alone(tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        with layout.transaction(tmp_path / name) as work:
            (work.folder / "a").write_text("a")
            work.facts["made"] = name
        digests.append(layout.verify(tmp_path / name)["digest"])
    assert digests[0] == digests[1]


def test_what_is_committed_can_be_read_by_whoever_serves_it(tmp_path: Path) -> None:
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in saved(tmp_path, 10).iterdir()}
    assert set(modes.values()) == {"0o644"}, modes


def test_two_who_fill_a_folder_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, waits = [], threading.Event()
    monkeypatch.setattr(layout, "print", lambda text, **options: (told.append(text), waits.set()), raising=False)

    def fill() -> None:
        with layout.transaction(tmp_path / "x") as work:
            (work.folder / "second").write_text("second")

    second = threading.Thread(target=fill)
    with layout.transaction(tmp_path / "x") as work:
        (work.folder / "first").write_text("first")
        second.start()
        assert waits.wait(5)
        assert (work.folder / "first").is_file(), "the second leaves it alone"
        assert not (tmp_path / "x").exists()
    second.join()
    assert told == [f"waiting for {tmp_path / '.x.lock'}: another process fills this folder"]
    assert set(layout.verify(tmp_path / "x")["files"]) == {"second"}  # type: ignore[call-overload]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_a_killed_process_left_is_removed_and_its_lock_is_free(tmp_path: Path) -> None:
    (tmp_path / ".x.tmp-1").mkdir()
    (tmp_path / ".x.lock").touch()
    with layout.transaction(tmp_path / "x"):
        assert not (tmp_path / ".x.tmp-1").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_volume_without_locks_is_used_and_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(layout.fcntl, "flock", refuse)
    with layout.transaction(tmp_path / "x"):
        pass
    assert layout.is_complete(tmp_path / "x")
    assert "this volume has no locks" in capsys.readouterr().out


EXPECTED = {"is missing": {"a": 1, "b": 1}, "has another size": {"a": 2}}


@pytest.mark.parametrize("expected", EXPECTED.values(), ids=EXPECTED)
def test_nothing_is_committed_where_a_file(expected: dict[str, int], tmp_path: Path) -> None:
    def fill() -> None:
        with layout.transaction(tmp_path / "x") as work:
            (work.folder / "a").write_text("a")
            work.expected = expected

    with pytest.raises(layout.Corrupt, match="should have"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_an_attempt_resumes_from_its_own_earlier_gangs_and_from_earlier_attempts(tmp_path: Path) -> None:
    """A Job that its queue suspends and resumes has a gang, and so a folder, each time."""
    for name in ("a3-mine", "a3-earlier", "a2-unseen", "a1-before", "a1-other", "a20-other"):
        (tmp_path / name).mkdir()
    named = [str(tmp_path / "a2"), str(tmp_path / "a1-before")]
    config = RunConfig.model_validate(make_config("train", tmp_path, tmp_path, run__path=str(tmp_path / "a3"), run__resumeFrom=named))
    found = [path.name for path in assemble.resumable(config, tmp_path / "a3-mine") if path.exists()]
    assert found == ["a3-mine", "a3-earlier", "a2-unseen", "a1-before"]


def test_what_only_tells_of_a_folder_is_verified_and_no_part_of_its_digest(tmp_path: Path) -> None:
    def made(name: str, card: str) -> dict[str, object]:
        with layout.transaction(tmp_path / name) as work:
            (work.folder / "weights").write_text("weights")
            (work.folder / "README.md").write_text(card)
            work.aside.add("README.md")
        return layout.verify(tmp_path / name)

    assert made("a", "of a")["digest"] == made("b", "of b")["digest"]
    (tmp_path / "a" / "README.md").write_text("changed")
    with pytest.raises(layout.Corrupt):
        layout.verify(tmp_path / "a")
