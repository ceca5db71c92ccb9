"""Go programs that tests need, each built once for each state of its sources and kept outside the tree."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from devcluster import nodebinary, paths
from devcluster.shell import lock, run
from tests import gomodule

FLAGS: Final = ("-trimpath", "-mod=readonly")


def ensure(name: str, sources: Path, go: tuple[int, int], package: str = ".", *, checksum: str = "") -> Path:
    """The program, built by that Go or a later one if need be (and its modules from the Go proxy once).

    `checksum`: of the whole module, where more than the folder's own files tells one state of the sources from another.
    """
    binary = paths.cache() / name / nodebinary.sources_hash(sources, (*FLAGS, checksum) if checksum else FLAGS) / name
    with lock(f"{name}-binary"):
        if not binary.exists():
            draft = binary.with_suffix(".draft")
            draft.parent.mkdir(parents=True, exist_ok=True)
            environment = {**gomodule.ENVIRONMENT, "CGO_ENABLED": "0"}
            run([nodebinary.find_go(go), "build", *FLAGS, "-o", draft, package], cwd=sources, env=environment)
            draft.rename(binary)
    return binary
