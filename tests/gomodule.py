"""Go modules that tests read or build, from Go's own cache of modules: nothing of them is in this tree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from devcluster import nodebinary
from devcluster.shell import DevclusterError, run

ENVIRONMENT: Final = {"GOTOOLCHAIN": "local", "GOFLAGS": "", "GOWORK": "off"}


def folder(module: str, checksum: str, go: tuple[int, int]) -> Path:
    """Where its files are; PATH@VERSION comes from the Go proxy once. DevclusterError if it is not what it was."""
    told = json.loads(run([nodebinary.find_go(go), "mod", "download", "-json", module], env=ENVIRONMENT))
    if told["Sum"] != checksum:
        raise DevclusterError(f"{module} has the checksum {told['Sum']}, and not {checksum}")
    return Path(told["Dir"])
