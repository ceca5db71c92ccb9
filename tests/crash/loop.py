"""`make crash-loop`: the trainer's writes cut off before every change of a file, refused at every change, and damaged afterwards.

For each scenario and each change that it makes below its folder:
- **kill**: the process is ended by SIGKILL just before the change. A new process must find what was there before or what
  was being written, whole; the work done again must succeed and leave nothing lying about (but a lock's file, which is free).
- **power cut**: of the same moment, three disks: only what was flushed is there; all names are there with only what was
  flushed of the contents; the write that was under way is there by half. The same is asked of them.
- **fault**: from that change on the disk is full, or the volume read-only, or that one change meets an I/O error. What fails
  must name the path and the fix, as an infrastructure failure, and lose nothing that was there.
- **small disk** (as root): the same on real file systems, each with a page more room than the one before.
- **damage**: bytes of the newest folder's files are turned over, and the files cut short: the folder must be passed over.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_trainer.exits import Infrastructure

from tests.crash import operations, volume
from tests.crash.operations import Decide, Operation, Trace, apart, traced
from tests.crash.scenarios import AFTER, LIGHT, Scenario, all_scenarios
from tests.crash.volume import Tree, Volume

FAULTS = {
    "DiskFull": operations.full_from,
    "VolumeReadOnly": operations.read_only_from,
    "VolumeError": operations.broken_at,
}
PAGE = 4096
FLIPS, CUTS = 24, 8  # a file: bytes turned over, and lengths that it is cut to


@dataclass
class Count:
    """How often something was done, and how often it went as it must."""

    done: int = 0
    good: int = 0

    def __str__(self) -> str:
        return f"{self.good}/{self.done}" if self.done else "–"

    def add(self, other: Count) -> None:
        """Add another count."""
        self.done, self.good = self.done + other.done, self.good + other.good


@dataclass
class Found:
    """What came of one scenario, or of all."""

    operations: int = 0
    kills: Count = field(default_factory=Count)
    power_cuts: Count = field(default_factory=Count)
    faults: Count = field(default_factory=Count)
    small_disks: Count = field(default_factory=Count)
    damages: Count = field(default_factory=Count)
    problems: list[str] = field(default_factory=list)

    def add(self, other: Found) -> None:
        """Add another scenario's."""
        self.operations += other.operations
        for name in ("kills", "power_cuts", "faults", "small_disks", "damages"):
            getattr(self, name).add(getattr(other, name))
        self.problems += other.problems


def run(scenario: Scenario, every: int = 1) -> Found:
    """Cut the scenario off at every change, or every so many."""
    with scratch() as name:
        return _Runner(scenario, Path(name), every).run()


@dataclass(frozen=True)
class _Left:
    """A folder as something left it: what to find there, and which count it goes to. `wanted` is the only state allowed ('' either),
    `again` whether the work must succeed there afterwards, `problem` what was wrong already."""

    count: Count
    where: str
    folder: Path
    wanted: str = ""
    again: bool = True
    problem: str = ""


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder in memory, where there is one: what a disk keeps is told by `Volume`, so nothing need wait for a real one."""
    return tempfile.TemporaryDirectory(prefix="crash-loop-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


@contextmanager
def mounted(folder: Path, pages: int) -> Iterator[bool]:
    """`folder` as a file system of so many pages; False where this process may mount none."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={pages * PAGE}", "crash-loop", str(folder)]
    there = subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield there
    finally:
        if there:
            subprocess.run(["umount", str(folder)], check=True)


def _pages(folder: Path) -> int:
    return sum(-(-path.stat().st_size // PAGE) for path in folder.rglob("*") if path.is_file())


class _Runner:
    def __init__(self, scenario: Scenario, folder: Path, every: int) -> None:
        self.scenario, self.folder, self.every = scenario, folder, every
        self.pristine, self.runs = folder / "pristine", folder / "runs"
        self.found = Found()

    def run(self) -> Found:
        apart(lambda: self.scenario.before(self.pristine) and None)
        whole = self._trace("whole", operations.never)
        assert whole.error is None, whole.error
        self.found.operations = len(whole.done)
        ended = [*self._cut(whole, None, "power cut at its end", AFTER)]
        self._judge(ended)
        for number in range(1, len(whole.done) + 1, self.every):
            self._judge([*self._killed(number), *self._faults(number)])
        if self.scenario.newest is not None:
            self._damage(self.scenario.newest)
            for pages in range(1, len(whole.done), self.every):
                self._on_a_small_disk(pages)
        return self.found

    def _trace(self, name: str, decide: Decide) -> Trace:
        """The work, on a copy of the volume of this name."""
        folder = self.runs / name
        shutil.copytree(self.pristine, folder, symlinks=True)
        return traced(folder, lambda: self.scenario.work(folder), decide)

    def _killed(self, number: int) -> Iterator[_Left]:
        trace = self._trace("killed", operations.kill_before(number))
        assert trace.killed_before is not None, f"{self.scenario.name}: change {number} was not made this time"
        where = f"killed before {number}, {trace.killed_before}"
        yield _Left(self.found.kills, where, self.runs / "killed")
        yield from self._cut(trace, trace.killed_before, where)

    def _cut(self, trace: Trace, coming: Operation | None, where: str, wanted: str = "") -> Iterator[_Left]:
        """The disks that a power cut may leave at the end of what was traced, just before `coming`."""
        folder = self.runs / ("whole" if coming is None else "killed")
        for place, (name, tree) in enumerate(self._trees(trace, coming, folder)):
            volume.write(tree, self.runs / f"cut-{place}")
            yield _Left(self.found.power_cuts, f"{where}, {name}", self.runs / f"cut-{place}", wanted)

    def _trees(self, trace: Trace, coming: Operation | None, folder: Path) -> Iterator[tuple[str, Tree]]:
        told = Volume(self.pristine)
        for operation in trace.done:
            told.apply(operation)
        assert told.tree() == Volume(folder).tree(), f"{self.scenario.name}: not all changes were seen"
        yield "only what was flushed", told.tree(names_safe=True, data_safe=True)
        yield "names without contents", told.tree(data_safe=True)
        if coming is not None and coming.name == "write":
            half = coming.data[: len(coming.data) // 2]
            told.apply(Operation(coming.name, coming.path, offset=coming.offset, data=half))
            yield "half of a write", told.tree()

    def _faults(self, number: int) -> Iterator[_Left]:
        for reason, fault in FAULTS.items():
            trace = self._trace(reason, fault(number))
            if trace.refused:
                problem = self._unclear(reason, trace.error) if trace.error else ""
                where = f"{reason} at {number}, {trace.refused[0]}"
                yield _Left(self.found.faults, where, self.runs / reason, "" if trace.error else AFTER, problem=problem)

    def _on_a_small_disk(self, pages: int) -> None:
        """A real file system with so many pages of room, which writes what fits of a file and then no more."""
        folder = self.runs / "DiskFull"
        with mounted(folder, _pages(self.pristine) + pages) as there:
            if not there:
                return
            shutil.copytree(self.pristine, folder, symlinks=True, dirs_exist_ok=True)
            trace = traced(folder, lambda: self.scenario.work(folder))
            problem = self._unclear("DiskFull", trace.error) if trace.error else ""
            wanted = "" if trace.error else AFTER
            left = _Left(self.found.small_disks, f"{pages} pages of room", folder, wanted, again=False, problem=problem)
            self._note(left, problem or apart(lambda: self._problem(left)))
        shutil.rmtree(self.runs)

    def _unclear(self, reason: str, error: dict[str, Any]) -> str:
        """What an error's words lack."""
        if (error["class"], error["reason"]) != (Infrastructure.failure_class, reason):
            return f"told as {error['class']} {error['reason']}: {error['message']}"
        if str(self.runs / reason) not in error["message"]:
            return f"no path: {error['message']}"
        return "" if error["fix"] else "no fix"

    def _damage(self, newest: Callable[[Path], Path]) -> None:
        trace = self._trace("damaged", operations.never)
        assert trace.error is None
        folder = self.runs / "damaged"

        def states() -> list[tuple[str, str]]:
            found = []
            for path in sorted(path for path in newest(folder).rglob("*") if path.is_file()):
                content = path.read_bytes()
                for name, damaged in _damaged(content):
                    path.write_bytes(damaged)
                    found.append((f"{path.name} {name}", self._problem(_Left(self.found.damages, "", folder, again=False))))
                path.write_bytes(content)
            return found

        for where, problem in apart(states):
            self._note(_Left(self.found.damages, where, folder), problem)
        shutil.rmtree(self.runs)

    def _judge(self, left: list[_Left]) -> None:
        """What a new process finds in these folders, which then go."""
        problems = apart(lambda: [self._problem(one) for one in left])
        for one, problem in zip(left, problems, strict=True):
            self._note(one, one.problem or problem)
        shutil.rmtree(self.runs)

    def _problem(self, left: _Left) -> str:
        """What is wrong with a folder, '' if nothing is."""
        try:
            state = self.scenario.state(left.folder)
            assert left.wanted in ("", state), f"the state {state}, not {left.wanted}"
            if left.again:
                self.scenario.work(left.folder)
                assert self.scenario.state(left.folder) == AFTER, "the work, done again, did nothing"
                lying = [str(path.relative_to(left.folder)) for path in left.folder.rglob(".*") if path.suffix != ".lock"]
                assert not lying, f"left lying about: {lying}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def _note(self, left: _Left, problem: str) -> None:
        left.count.done += 1
        left.count.good += not problem
        if problem:
            self.found.problems.append(f"{self.scenario.name}: {left.where}: {problem}")


def _damaged(content: bytes) -> Iterator[tuple[str, bytes]]:
    """The content with one byte turned over, in every region, and cut short."""
    for place in sorted({len(content) * part // FLIPS for part in range(FLIPS)}) if content else []:
        yield f"byte {place} turned over", content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]
    for length in sorted({len(content) * part // CUTS for part in range(CUTS)}):
        yield f"cut to {length} bytes", content[:length]


def table(found: dict[str, Found]) -> str:
    """One line a scenario."""
    heads = ("scenario", "changes", "kills", "power cuts", "faults", "small disks", "damages")
    rows = [
        heads,
        *((name, str(f.operations), *map(str, (f.kills, f.power_cuts, f.faults, f.small_disks, f.damages))) for name, f in found.items()),
    ]
    return "\n".join(f"{row[0]:30}" + "".join(f"{cell:>14}" for cell in row[1:]) for row in rows)


def report(total: Found) -> dict[str, Any]:
    """The last line."""
    return {
        "kills": total.kills.done,
        "loadable": total.kills.good,
        "power_cuts": total.power_cuts.done,
        "power_cuts_loadable": total.power_cuts.good,
        "faults": total.faults.done,
        "faults_clear": total.faults.good,
        "small_disks": total.small_disks.done,
        "small_disks_clear": total.small_disks.good,
        "damages": total.damages.done,
        "damages_passed_over": total.damages.good,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.loop", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--light", action="store_true", help="without the scenarios that run whole stages on a tiny model")
    parser.add_argument("--only", default="", help="scenarios whose name has this in it")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every so many changes of each scenario")
    options = parser.parse_args()
    os.environ.update(FINETUNE_PROGRESS_PORT="0", OMP_NUM_THREADS="1")
    total, found, started = Found(), {}, time.monotonic()
    with scratch() as folder:
        every = LIGHT if options.light else all_scenarios(Path(folder))
        wanted = [scenario for scenario in every if options.only in scenario.name]
        if not wanted:
            parser.error(f"--only {options.only!r} names none of: {', '.join(s.name for s in every)}")
        for scenario in wanted:
            found[scenario.name] = run(scenario, options.every)
            total.add(found[scenario.name])
            print(f"{time.monotonic() - started:5.0f} s  {scenario.name}: {len(found[scenario.name].problems)} problems", flush=True)
    print(table(found))
    print("\n".join(total.problems[:50]), file=sys.stderr)
    print(json.dumps(report(total)))
    return 1 if total.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
