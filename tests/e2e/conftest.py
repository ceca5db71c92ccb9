"""One installation of the operator on the real node for all end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import devcluster
from devcluster import baseimage, buildenv, images
from devcluster.shell import run
from tests.e2e.world import World, installed
from tests.watching import Watching


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """The node with the chart installed."""
    with installed() as found:
        yield found


@pytest.fixture(scope="session", autouse=True)
def watching(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watching]:
    """A Prometheus that scrapes the node's pods from before the first FineTune."""
    with Watching(tmp_path_factory.mktemp("prometheus"), devcluster.pods) as found:
        yield found


BROKEN_SERVER = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Server(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("content-length", "3"); self.end_headers(); self.wfile.write(b"ok\\n")
    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(500); self.send_header("content-length", "0"); self.end_headers()

ThreadingHTTPServer(("", 8000), Server).serve_forever()
"""


@pytest.fixture(scope="session")
def broken_image(world: World, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A server that is ready at once and answers every completion with 500."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "server.py").write_text(BROKEN_SERVER)
    (folder / "Dockerfile").write_text(
        'ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nCOPY server.py /server.py\nUSER 10001:10001\nENTRYPOINT ["python3", "/server.py"]\n'
    )
    build = [*buildenv.build_command(baseimage.reference()), "-t", "localhost/e2e-broken:1", "-f", folder / "Dockerfile", folder]
    run(build, env=buildenv.environment())
    return images.push("localhost/e2e-broken:1", "finetune.dev/e2e-broken:1")
