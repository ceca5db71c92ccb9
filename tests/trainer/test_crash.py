"""Writes cut off by SIGKILL, by a power cut, by a full or broken disk, at changes of files: `make crash-loop` in small.

The whole report takes every change of every scenario; these take some of each, in a process of their own that may fork.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.crash import loop, operations
from tests.crash.operations import Operation, Trace
from tests.crash.scenarios import LIGHT
from tests.crash.volume import Volume
from tests.trainer.support import CONTEXT

EVERY = 8
DAMAGED = "checkpoint, the oldest goes"


@pytest.fixture(scope="module")
def apart() -> Iterator[ProcessPoolExecutor]:
    """A process without threads."""
    with ProcessPoolExecutor(1, mp_context=CONTEXT) as pool:
        yield pool


def _run(number: int) -> loop.Found:
    scenario = LIGHT[number]
    return loop.run(scenario if scenario.name == DAMAGED else replace(scenario, newest=None), EVERY)


@pytest.mark.parametrize("number", range(len(LIGHT)), ids=[scenario.name for scenario in LIGHT])
def test_what_was_there_or_what_was_written_is_there_after(number: int, apart: ProcessPoolExecutor) -> None:
    found = apart.submit(_run, number).result()
    assert not found.problems, "\n".join(found.problems[:20])
    assert found.kills.done >= found.operations // EVERY
    assert found.power_cuts.done >= 2 * found.kills.done
    assert found.faults.done > found.kills.done
    assert (found.damages.done > 100) == (LIGHT[number].name == DAMAGED)


def _work(folder: Path) -> str:
    """Every kind of change once, some through native code."""
    import torch
    from safetensors.torch import save_file

    (folder / "a").write_text("one")
    save_file({"w": torch.zeros(3)}, folder / "tensor")
    (folder / "sub").mkdir()
    (folder / "a").rename(folder / "sub" / "b")
    (folder / "sub" / "c").hardlink_to(folder / "sub" / "b")
    (folder / "link").symlink_to("a")
    with (folder / "sub" / "b").open("r+b") as stream:
        stream.seek(1)
        stream.write(b"NE")
        stream.truncate(2)
    (folder / "sub" / "c").unlink()
    (folder / "sub" / "c").mkdir()
    (folder / "sub" / "c").rmdir()
    return "done"


def _seen(folder: Path) -> tuple[Trace, bool]:
    before = Volume(folder)
    trace = operations.traced(folder, lambda: _work(folder))
    for operation in trace.done:
        before.apply(operation)
    return trace, before.tree() == Volume(folder).tree()


def test_every_change_is_seen_and_makes_the_same_folder_again(apart: ProcessPoolExecutor, tmp_path: Path) -> None:
    trace, same = apart.submit(_seen, tmp_path).result()
    assert (trace.result, trace.error, trace.refused) == ("done", None, [])
    assert {operation.name for operation in trace.done} == {
        "create", "write", "mkdir", "rename", "link", "symlink", "truncate", "unlink", "rmdir",
    }  # fmt: skip
    assert same


def _killed(folder: Path, number: int) -> Trace:
    return operations.traced(folder, lambda: _work(folder), operations.kill_before(number))


def test_a_kill_comes_just_before_the_change(apart: ProcessPoolExecutor, tmp_path: Path) -> None:
    trace = apart.submit(_killed, tmp_path, 2).result()
    assert trace.done == [Operation("create", "a")]
    assert trace.killed_before == Operation("write", "a", data=b"one")
    assert (tmp_path / "a").read_bytes() == b""


def _refused(folder: Path) -> Trace:
    return operations.traced(folder, lambda: _work(folder), operations.full_from(2))


def test_a_refusal_is_the_processs_own_error(apart: ProcessPoolExecutor, tmp_path: Path) -> None:
    trace = apart.submit(_refused, tmp_path).result()
    assert trace.error is not None
    assert trace.error["reason"] == "DiskFull"
    assert f"Errno {errno.ENOSPC}" in trace.error["message"]


def test_a_power_cut_keeps_contents_of_synced_files_and_names_in_synced_folders(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    volume = Volume(tmp_path)
    for name, path, data in (
        ("create", "new", b""), ("write", "new", b"12"), ("sync", "new", b""), ("write", "new", b"345"), ("write", "old", b"O"),
    ):  # fmt: skip
        volume.apply(Operation(name, path, data=data))
    assert volume.tree() == {"old": b"Old", "new": b"345"}
    assert volume.tree(data_safe=True) == {"old": b"old", "new": b"12"}
    assert volume.tree(names_safe=True, data_safe=True) == {"old": b"old"}
    volume.apply(Operation("sync", "."))
    assert volume.tree(names_safe=True, data_safe=True) == {"old": b"old", "new": b"12"}
