"""Each lock holds what its sources ask for, at the versions of the lock that it is held to."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tools.env import ENVIRONMENTS, ROOT
from tools.lock import LOCKS

PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)


def _name(requirement: str) -> str:
    """The distribution's name, as PEP 503 compares names."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]).lower()


def _pins(lock: str) -> dict[str, str]:
    return {_name(name): version for name, version in PINNED.findall((ROOT / lock).read_text())}


def _asked(arguments: list[str]) -> set[str]:
    """The names that `uv pip compile` is given: a project's dependencies, and those of its groups."""
    asked: list[str] = []
    rest = iter(arguments)
    project = Path("pyproject.toml")
    for argument in rest:
        if argument == "-c":
            next(rest)
        elif argument == "--group":
            file, _, group = next(rest).rpartition(":")
            asked += tomllib.loads((ROOT / (file or project)).read_text())["dependency-groups"][group]
        elif argument.endswith(".toml"):
            project = Path(argument)
            asked += tomllib.loads((ROOT / project).read_text())["project"]["dependencies"]
    return {_name(requirement) for requirement in asked}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_what_its_sources_ask_for(lock: str) -> None:
    assert _asked(LOCKS[lock]) <= _pins(lock).keys()


@pytest.mark.parametrize("lock", [lock for lock, arguments in LOCKS.items() if "-c" in arguments])
def test_a_lock_agrees_with_the_lock_it_is_held_to(lock: str) -> None:
    arguments = LOCKS[lock]
    held_to, own = _pins(arguments[arguments.index("-c") + 1]), _pins(lock)
    assert own == own | {name: version for name, version in held_to.items() if name in own or arguments[0].endswith(".toml")}


@pytest.mark.parametrize("lock", ["requirements.lock", "trainer-image/requirements.lock"])
def test_what_tests_alone_need_is_in_no_image(lock: str) -> None:
    assert _pins(lock).keys() & {"openai", "pytest", "mypy", "ruff"} == set()


def test_every_lock_of_an_environment_is_made_here() -> None:
    assert {lock for locks, _ in ENVIRONMENTS.values() for lock in locks} <= LOCKS.keys()


def test_an_environment_asked_for_from_within_is_the_one_that_runs() -> None:
    """As `make test` does: another one would be made first, of the same packages."""
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "env.py"), "dev"], capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == Path(sys.prefix)
