"""Does some test notice when a rule is wrong? `make mutation` changes decide/ in one place at a time and asks the unit tests.

One pytest session collects the tests once and traces which of them execute which lines. A mutant is a fork of that session: it
takes over the changed code and runs the tests that execute the changed line, fastest first, until one fails. Changes that make no
difference are listed with the reason in `equivalent.toml`; the score is killed / (mutants - equivalent). The last line printed is
one JSON object. (mutmut was tried: it changes a copy of the whole tree, knows no module-level tables, and brings five packages.)
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import pickle
import signal
import sys
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

from tests.mutation.mutants import Change, changes

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "operator" / "src" / "finetune_operator" / "decide"
EQUIVALENT = Path(__file__).with_name("equivalent.toml")
TESTS = ("tests/unit/operator", "tests/contract/test_results.py")
FEW_EXAMPLES = {"FINETUNE_EXAMPLES": "0.1"}  # of each property test: a mutant that only rare ones notice counts as survived
WANTED_PERCENT = 90
PATIENCE = 5  # times the tests' own time, and half a minute; a mutant that takes longer hangs, and so is noticed
Verdict = str  # "killed", "survived", "equivalent"


@dataclass
class Traced:
    """What one run of a test took, and which lines of which rules it executed."""

    seconds: float = 0.0
    lines: set[tuple[str, int]] = field(default_factory=set)


@dataclass(frozen=True)
class Mutant:
    """The change with that number of a file, as the file was when it was read."""

    file: str
    number: int
    change: Change
    source: str = field(repr=False)

    @property
    def name(self) -> str:
        """As `equivalent.toml` lists it."""
        return f"{self.file} {self.change.text}"


def mutants(file: str) -> Iterator[Mutant]:
    """All of a file's, as it is on the disk now."""
    source = (RULES / file).read_text()
    for number, change in enumerate(changes(ast.parse(source))):
        yield Mutant(file, number, change, source)


def module_of(file: str) -> str:
    """The module that a file of decide/ is, as `rollout/hold.py`."""
    return f"{RULES.parent.name}.{RULES.name}.{file.removesuffix('.py').replace('/', '.')}".removesuffix(".__init__")


def equivalent(path: Path = EQUIVALENT) -> dict[str, str]:
    """Name → reason of the mutants that no test can notice."""
    return {entry["mutant"]: entry["reason"] for entry in tomllib.loads(path.read_text()).get("equivalent", [])}


def take_over(module: ModuleType, tree: ast.Module) -> None:
    """Let the imported module, and whoever imported from it, go on with the tree's code."""
    ast.fix_missing_locations(tree)
    changed = dict(vars(module))
    exec(compile(tree, str(module.__file__), "exec"), changed)
    for name, new in changed.items():
        old = vars(module).get(name)
        if isinstance(new, FunctionType) and isinstance(old, FunctionType):
            _swap(old, new)
        elif isinstance(new, type) and isinstance(old, type) and new is not old:
            _swap_methods(old, new)
        elif new is not old and not name.startswith("__"):
            for other in list(sys.modules.values()):
                if vars(other).get(name) is old:
                    setattr(other, name, new)


def _swap(old: FunctionType, new: FunctionType) -> None:
    if new is not old and old.__module__ == new.__module__:
        old.__code__, old.__defaults__, old.__kwdefaults__ = new.__code__, new.__defaults__, new.__kwdefaults__


def _swap_methods(old: type, new: type) -> None:
    """A dataclass's `__init__` holds its defaults in a closure: it is taken as it is."""
    if old.__module__ != new.__module__:
        return
    for name, method in vars(new).items():
        mine = vars(old).get(name)
        if name == "__init__":
            setattr(old, name, method)
        elif isinstance(mine, property) and isinstance(method, property):
            _swap(mine.fget, method.fget)  # type: ignore[arg-type]
        elif isinstance(mine, cached_property) and isinstance(method, cached_property):
            _swap(mine.func, method.func)  # type: ignore[arg-type]
        elif isinstance(mine, FunctionType) and not mine.__closure__:
            _swap(mine, method)


class Session:
    """A pytest plugin: instead of running the tests once it runs them for each mutant."""

    def __init__(self, files: list[str], workers: int, every: int = 1) -> None:
        self.files, self.workers, self.every = files, workers, every
        self.failed = False
        self.verdicts: dict[Mutant, Verdict] = {}
        self.traced: dict[str, Traced] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed = self.failed or report.failed
        if report.failed and not self.traced:
            print(f"{report.nodeid}: {report.longreprtext}", flush=True)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed or not session.items:
            return True
        started = time.monotonic()
        wanted = [m for file in self.files for m in mutants(file)]
        self.traced = _forked(lambda: self._trace(session.items))
        print(f"{len(session.items)} tests traced in {time.monotonic() - started:.0f} s", flush=True)
        if not self.traced:
            raise pytest.UsageError("a test fails without any mutant: mend that first")
        reasons = equivalent()
        unknown = {name for name in reasons if name.split(" ", 1)[0] in self.files} - {m.name for m in wanted}
        if unknown:
            raise pytest.UsageError("equivalent.toml lists what is no mutant (any more):\n" + "\n".join(sorted(unknown)))
        wanted = wanted[:: self.every]
        self.verdicts = {m: "equivalent" for m in wanted if m.name in reasons}
        self._judge([m for m in wanted if m not in self.verdicts], session.items)
        return True

    def _run(self, items: Iterable[pytest.Item]) -> bool:
        """Does every one of them pass?"""
        chosen = list(items)
        for item, following in zip(chosen, [*chosen[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                return False
        return True

    def _trace(self, items: list[pytest.Item]) -> dict[str, Traced]:
        found: dict[str, Traced] = defaultdict(Traced)
        folder = f"{RULES}{os.sep}"

        def tracer(lines: set[tuple[str, int]]) -> Callable[..., Any]:
            def trace(frame: Any, event: str, _: Any) -> Any:
                path = frame.f_code.co_filename
                if not path.startswith(folder):
                    return None
                lines.add((path.removeprefix(folder), frame.f_lineno))
                return trace

            return trace

        for item in items:
            started = time.monotonic()
            sys.settrace(tracer(found[item.nodeid].lines))
            passed = self._run([item])
            sys.settrace(None)
            found[item.nodeid].seconds = time.monotonic() - started
            if not passed:
                return {}
        return dict(found)

    def _judge(self, todo: list[Mutant], items: list[pytest.Item]) -> None:
        """A fork for each mutant, `workers` at a time."""
        running: dict[int, Mutant] = {}
        started, done = time.monotonic(), 0
        queue = iter(todo)
        while True:
            while len(running) < self.workers and (mutant := next(queue, None)) is not None:
                tests = self._tests(mutant, items)
                if not tests:
                    self.verdicts[mutant], done = "survived", done + 1
                    print(f"SURVIVED, no test executes it: {_shown(mutant)}", flush=True)
                    continue
                running[self._fork(mutant, tests)] = mutant
            if not running:
                return
            pid, status = os.waitpid(-1, 0)
            mutant, done = running.pop(pid), done + 1
            self.verdicts[mutant] = "survived" if status == 0 else "killed"
            if status == 0:
                print(f"SURVIVED: {_shown(mutant)}", flush=True)
            if done % 25 == 0 or done == len(todo):
                left = (time.monotonic() - started) / done * (len(todo) - done)
                print(f"{mutant.file}: {done} of {len(todo)} mutants, about {left:.0f} s left", flush=True)

    def _tests(self, mutant: Mutant, items: list[pytest.Item]) -> list[pytest.Item]:
        """Those that execute the changed line; all that execute the file where it runs when the module is imported, or, where it holds
        nothing but constants, a file beside it."""
        change = mutant.change
        known = {line for t in self.traced.values() for line in t.lines}
        files = {file for file, _ in known}
        near = {mutant.file} if mutant.file in files else {f for f in files if Path(f).parent == Path(mutant.file).parent}
        at_import = (mutant.file, change.line) not in known and "." not in change.function and change.function[:1].isupper()
        whole = change.function == "module" or at_import

        def executes(item: pytest.Item) -> bool:
            lines = self.traced[item.nodeid].lines
            return any(file in near for file, _ in lines) if whole else (mutant.file, change.line) in lines

        return sorted(filter(executes, items), key=lambda item: self.traced[item.nodeid].seconds)

    def _fork(self, mutant: Mutant, tests: list[pytest.Item]) -> int:
        """The pid of a process that ends with 0 when no test notices the mutant."""
        pid = os.fork()
        if pid:
            return pid
        try:
            _hush()
            signal.alarm(30 + int(PATIENCE * sum(self.traced[t.nodeid].seconds for t in tests)))
            tree = ast.parse(mutant.source)
            list(changes(tree))[mutant.number].apply()
            take_over(importlib.import_module(module_of(mutant.file)), tree)
            os._exit(0 if self._run(tests) else 1)
        except BaseException:
            os._exit(2)


def _forked(work: Callable[[], Any]) -> Any:
    """The result of the work, done in another process: this one's tests have not run afterwards."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        _hush()
        with os.fdopen(write, "wb") as pipe:
            pickle.dump(work(), pipe)
            pipe.flush()
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    return pickle.loads(data) if data else {}


def _hush() -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)


def _shown(mutant: Mutant) -> str:
    path = (RULES / mutant.file).relative_to(ROOT)
    return f"{path}:{mutant.change.line} [{mutant.change.kind}] {mutant.change.text}"


def report(verdicts: dict[Mutant, Verdict]) -> dict[str, Any]:
    """Survivors by kind on the way, and the totals."""
    count = Counter(verdicts.values())
    for kind in sorted({m.change.kind for m in verdicts}):
        mine = Counter(v for m, v in verdicts.items() if m.change.kind == kind)
        print(f"{kind}: {mine['killed']} killed, {mine['survived']} survived, {mine['equivalent']} equivalent")
    for mutant in (m for m, verdict in verdicts.items() if verdict == "survived"):
        print(f"survived: {_shown(mutant)}")
    asked = count["killed"] + count["survived"]
    score = round(100 * count["killed"] / asked, 1) if asked else 0.0
    return {
        "mutants": len(verdicts), "killed": count["killed"], "survived": count["survived"], "equivalent": count["equivalent"],
        "score_percent": score,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation.run", description=__doc__)
    parser.add_argument("files", nargs="*", help="files of decide/, as gate.py or rollout/hold.py; all if none is named")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="mutants tried at once")
    parser.add_argument("--every", type=int, default=1, help="a sample: every so many-th mutant alone")
    parser.add_argument("--tests", nargs="+", default=list(TESTS), help="tests to ask")
    options = parser.parse_args()
    if unknown := [name for name in options.files if not (RULES / name).is_file()]:
        parser.error(f"decide/ has no {', '.join(unknown)}")
    session = Session(options.files or sorted(p.relative_to(RULES).as_posix() for p in RULES.rglob("*.py")), options.workers, options.every)
    os.environ.update(FEW_EXAMPLES)
    if pytest.main(["-q", "-s", *options.tests], plugins=[session]) not in (0, 5) or not session.verdicts:
        return 2
    result = report(session.verdicts)
    print(json.dumps(result))
    return 0 if result["score_percent"] >= WANTED_PERCENT else 1


if __name__ == "__main__":
    sys.exit(main())
