#!/usr/bin/env python3
"""Python environments from hash locks, made once per lock and kept outside the tree.

    python3 tools/env.py dev pytest tests/unit       run a command in the operator's development environment
    python3 tools/env.py trainer pytest tests/trainer   … in the trainer's
    python3 tools/env.py oracle pytest tests/numerics   … in the trainer's with TRL beside it
    python3 tools/env.py dev                         make it and print its folder

Standard library alone; uv does the work (installed by pip into the cache, once).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("FINETUNE_CACHE") or Path.home() / ".cache" / "finetune-operator")
UV_VERSION = "0.13.9"
KEPT = 2  # of a name, and whatever was used within IN_USE_SECONDS: the trainer's takes 5 GB
IN_USE_SECONDS = 24 * 3600
BUILT_HERE = "deepspeed"  # it has no wheel: built with the setuptools that an earlier lock has installed, without compiled ops
# Name → (locks in order, folders whose sources are importable).
ENVIRONMENTS = {
    "dev": (["requirements-dev.lock"], ["operator/src", "trainer-image/src", "."]),
    "trainer": (
        [f"trainer-image/{name}.lock" for name in ("build-requirements", "requirements-test", "model-requirements")],
        ["trainer-image/src", "."],
    ),
    # The trainer's, and what its numbers are held against.
    "oracle": (
        [
            f"trainer-image/{name}.lock"
            for name in ("build-requirements", "requirements-oracle", "model-requirements", "templates-requirements")
        ],
        ["trainer-image/src", "."],
    ),
}


def say(text: str) -> None:
    print(f"env: {text}", file=sys.stderr, flush=True)


def uv() -> Path:
    """uv's binary, installed into the cache when it is not there."""
    binary = CACHE / "tools" / f"uv-{UV_VERSION}" / "bin" / "uv"
    if not binary.exists():
        say(f"installing uv {UV_VERSION}")
        folder = binary.parent.parent
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "-q", f"uv=={UV_VERSION}"], check=True, stdout=sys.stderr)
    return binary


def python() -> str:
    """The interpreter the environments are made from: 3.11, as in the images; the same one when asked from within an environment."""
    wanted = shutil.which("python3.11") or sys.executable
    asked = "import os, sys; print(sys.version_info[:2] >= (3, 11), os.path.realpath(sys._base_executable))"
    new_enough, _, base = subprocess.run([wanted, "-c", asked], check=True, capture_output=True, text=True).stdout.strip().partition(" ")
    if new_enough != "True":
        raise SystemExit(f"{wanted} is older than Python 3.11: install python3.11")
    return base


def ensure(name: str) -> Path:
    """The environment's folder, made if its locks have none yet."""
    locks, _ = ENVIRONMENTS[name]
    texts = [(ROOT / lock).read_bytes() for lock in locks]
    digest = hashlib.sha256(b"\0".join([*texts, python().encode()])).hexdigest()[:12]
    folder = CACHE / "venvs" / f"{name}-{digest}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "venvs" / f"{name}.flock", "w") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        if not (folder / "COMPLETE").exists():
            make(name, folder, [ROOT / lock for lock in locks])
        (folder / "COMPLETE").touch()  # says when it was last used
    return folder


def make(name: str, folder: Path, locks: list[Path]) -> None:
    started = time.monotonic()
    expected = "some minutes: it holds torch" if name in ("trainer", "oracle") else "about a minute"
    say(f"making the {name} environment from {', '.join(lock.name for lock in locks)} ({expected})")
    shutil.rmtree(folder, ignore_errors=True)
    tool = str(uv())
    subprocess.run([tool, "venv", "-q", "--python", python(), str(folder)], check=True, stdout=sys.stderr)
    # A lock is the whole resolution, or leaves something out on purpose.
    install = [
        tool, "pip", "install", "-q", "--python", str(folder / "bin" / "python"), "--no-deps", "--require-hashes",
        "--no-build-isolation-package", BUILT_HERE,
    ]  # fmt: skip
    for lock in locks:
        subprocess.run([*install, "-r", str(lock)], check=True, stdout=sys.stderr, env={**os.environ, "DS_BUILD_OPS": "0"})
    (folder / "COMPLETE").touch()
    forget_old(name, folder.parent)
    say(f"the {name} environment is ready ({time.monotonic() - started:.0f} s)")


def forget_old(name: str, folder: Path) -> None:
    """Keep what is in use, and those last used, for checkouts of different ages."""
    used = {path: _used(path) for path in folder.glob(f"{name}-*")}
    for path in sorted(used, key=used.__getitem__)[:-KEPT]:
        if time.time() - used[path] > IN_USE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _used(path: Path) -> float:
    """When the environment was last used; never, if it was not finished (nobody makes another one of its name now)."""
    complete = path / "COMPLETE"
    return complete.stat().st_mtime if complete.exists() else 0.0


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0] not in ENVIRONMENTS:
        raise SystemExit(__doc__)
    folder = ensure(arguments[0])
    if len(arguments) == 1:
        print(folder)
        return
    sources = [str(ROOT / source) for source in ENVIRONMENTS[arguments[0]][1]]
    environment = {
        **os.environ,
        "VIRTUAL_ENV": str(folder),
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sources),
    }
    os.chdir(ROOT)
    os.execvpe(arguments[1], arguments[1:], environment)


if __name__ == "__main__":
    main(sys.argv[1:])
