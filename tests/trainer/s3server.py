"""A real S3 server on this machine: versitygw over a folder, built once from its Go module (`python -m tests.trainer.s3server`)."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from devcluster import loopback
from tests import goprogram
from tests.trainer.support import wait_until

SOURCES = Path(__file__).resolve().parent / "s3server"
GO = (1, 25)
PACKAGE = "github.com/versity/versitygw/cmd/versitygw"


@dataclass(frozen=True)
class S3Server:
    """Its address, the folder whose sub-folders are buckets, and the keys that open it, as a Secret has them."""

    address: str
    folder: Path
    keys: dict[str, str]


def ensure() -> Path:
    """The program, built if need be (90 s of CPU)."""
    return goprogram.ensure("versitygw", SOURCES, GO, PACKAGE)


@contextmanager
def serving(folder: Path) -> Iterator[S3Server]:
    """The server over `folder`, which must exist."""
    (port,) = loopback.free_ports(1)
    keys = {
        "AWS_ACCESS_KEY_ID": "reader",
        "AWS_SECRET_ACCESS_KEY": "not-a-secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    environment = {**os.environ, "ROOT_ACCESS_KEY": keys["AWS_ACCESS_KEY_ID"], "ROOT_SECRET_KEY": keys["AWS_SECRET_ACCESS_KEY"]}
    command = [ensure(), "--quiet", "--port", f"127.0.0.1:{port}", "posix", folder]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as process:
        try:
            wait_until("the S3 server", lambda: _answers(port) or process.poll() is not None)
            assert process.poll() is None
            yield S3Server(keys["AWS_ENDPOINT_URL"], folder, keys)
        finally:
            process.kill()


def _answers(port: int) -> bool:
    with socket.socket() as found:
        return found.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    print(ensure())
