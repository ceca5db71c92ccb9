"""The reference library's answer (sigs.k8s.io/cli-utils, kstatus): its Go program, built once for each state of its sources."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests import goprogram
from tests.gitops.recorded import Object

SOURCES = Path(__file__).resolve().parent / "kstatus"
GO = (1, 24)


def ensure() -> Path:
    """The program, built if need be (20 s on two cores)."""
    return goprogram.ensure("kstatus", SOURCES, GO)


def statuses(finetunes: Iterable[Object]) -> list[str]:
    """What kstatus computes of each."""
    done = subprocess.run([ensure()], input=json.dumps(list(finetunes)), text=True, capture_output=True, check=True)
    return [answer["status"] for answer in json.loads(done.stdout)]
