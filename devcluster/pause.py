"""The sandbox image: a static program that waits, packed as a docker archive and imported into containerd."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

from devcluster import paths
from devcluster.shell import run

IMAGE = "localhost/pause:1"
_SOURCE = r"""
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void stop(int sig) { (void)sig; _exit(0); }
static void reap(int sig) { (void)sig; while (waitpid(-1, 0, WNOHANG) > 0); }
int main(void) {
  signal(SIGINT, stop); signal(SIGTERM, stop); signal(SIGCHLD, reap);
  for (;;) pause();
}
"""


def archive() -> Path:
    """The image as a docker archive in the cache, compiled once."""
    file = paths.cache() / "pause" / f"{hashlib.sha256(_SOURCE.encode()).hexdigest()[:16]}.tar"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        program = file.with_suffix(".bin")
        run(["gcc", "-Os", "-static", "-s", "-x", "c", "-o", program, "-"], stdin=_SOURCE)
        draft = file.with_suffix(".draft")
        draft.write_bytes(packed(program.read_bytes()))
        draft.rename(file)
    return file


def packed(program: bytes) -> bytes:
    """A docker archive of one layer that holds /pause and runs it as an unprivileged user."""
    layer = _tar({"pause": program}, mode=0o755)
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        }
    ).encode()
    manifest = json.dumps([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]).encode()
    return _tar({"config.json": config, "layer.tar": layer, "manifest.json": manifest}, mode=0o644)


def _tar(files: dict[str, bytes], *, mode: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def load(socket: Path) -> None:
    """Bring the image into containerd (a fraction of a second)."""
    run(["ctr", "--address", socket, "-n", "k8s.io", "images", "import", archive()])
