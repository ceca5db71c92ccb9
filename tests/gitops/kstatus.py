"""The reference library's answer (sigs.k8s.io/cli-utils, kstatus): its Go program, built once for each state of its sources."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

from devcluster import nodebinary, paths
from devcluster.shell import lock, run
from tests.gitops.recorded import Object

SOURCES = Path(__file__).resolve().parent / "kstatus"
FLAGS = ("-trimpath", "-mod=readonly")
GO = (1, 24)


def ensure() -> Path:
    """The program, built if need be (20 s on two cores, and its modules from the Go proxy once)."""
    binary = paths.cache() / "kstatus" / nodebinary.sources_hash(SOURCES, FLAGS) / "kstatus"
    with lock("kstatus-binary"):
        if not binary.exists():
            draft = binary.with_suffix(".draft")
            draft.parent.mkdir(parents=True, exist_ok=True)
            environment = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "", "GOWORK": "off"}
            run([nodebinary.find_go(GO), "build", *FLAGS, "-o", draft, "."], cwd=SOURCES, env=environment)
            draft.rename(binary)
    return binary


def statuses(finetunes: Iterable[Object]) -> list[str]:
    """What kstatus computes of each."""
    done = subprocess.run([ensure()], input=json.dumps(list(finetunes)), text=True, capture_output=True, check=True)
    return [answer["status"] for answer in json.loads(done.stdout)]
