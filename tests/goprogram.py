"""Go programs that tests need, each built once for each state of its sources and kept outside the tree."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from devcluster import nodebinary, paths
from devcluster.shell import lock, run

FLAGS: Final = ("-trimpath", "-mod=readonly")


def ensure(name: str, sources: Path, go: tuple[int, int], package: str = ".") -> Path:
    """The program, built by that Go or a later one if need be (and its modules from the Go proxy once)."""
    binary = paths.cache() / name / nodebinary.sources_hash(sources, FLAGS) / name
    with lock(f"{name}-binary"):
        if not binary.exists():
            draft = binary.with_suffix(".draft")
            draft.parent.mkdir(parents=True, exist_ok=True)
            environment = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "", "GOWORK": "off"}
            run([nodebinary.find_go(go), "build", *FLAGS, "-o", draft, package], cwd=sources, env=environment)
            draft.rename(binary)
    return binary
