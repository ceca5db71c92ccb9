"""Debian's Prometheus and promtool for the tests: unpacked into the cache and never installed, so no service is started."""

import shutil
import tempfile
from pathlib import Path
from typing import Literal

from devcluster import paths
from devcluster.shell import CommandError, DevclusterError, lock, run, say

PACKAGE = "prometheus"


def unpacked(tool: Literal["prometheus", "promtool"]) -> Path:
    """The program; its package is downloaded (19 MB, by apt, which checks its signature) when it is not in the cache."""
    folder = paths.cache() / "tools" / PACKAGE
    with lock(PACKAGE):
        if not folder.exists():
            _unpack(folder)
    return folder / "usr" / "bin" / tool


def _unpack(folder: Path) -> None:
    if shutil.which("apt-get") is None:
        raise DevclusterError(f"put {PACKAGE} and promtool into {folder}/usr/bin, then try again: this machine has no apt-get")
    say(f"downloading Debian's package {PACKAGE}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
        try:
            run(["apt-get", "download", "-qq", PACKAGE], cwd=Path(draft))
        except CommandError:  # its lists are empty, or older than the archive
            run(["apt-get", "update", "-qq"])
            run(["apt-get", "download", "-qq", PACKAGE], cwd=Path(draft))
        (package,) = Path(draft).glob(f"{PACKAGE}_*.deb")
        run(["dpkg-deb", "--extract", package, Path(draft) / "files"])
        (Path(draft) / "files").rename(folder)
