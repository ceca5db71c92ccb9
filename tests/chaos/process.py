"""The operator's process, forked from one that has imported everything: it starts in a tenth of a second and dies by SIGKILL.

It runs `finetune_operator` as it is; only the clock's time of day can be moved, by a file that names the seconds.
"""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import yaml
from finetune_operator import process
from finetune_operator.__main__ import main
from finetune_operator.clock import SystemClock

from devcluster.controlplane import ControlPlane
from tests.chaos.proxy import Proxy
from tests.integration.engine import Operator

CLOCK: Final = "CHAOS_CLOCK"
SECRETS: Final = "CHAOS_SECRETS"
CLONE_NEWNS: Final = 0x00020000
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["__main__", "tests.chaos.process"])


class MovedClock(SystemClock):
    """The machine's clock, as many seconds off as the file says."""

    def now(self) -> datetime:
        try:
            off = float(Path(os.environ[CLOCK]).read_text() or 0)
        except FileNotFoundError:
            off = 0.0
        return datetime.now(UTC) + timedelta(seconds=off)


def _run(environment: Mapping[str, str], log: str) -> None:
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.environ.clear()
    os.environ.update(environment)
    if SECRETS in environment:
        _as_in_a_pod(Path(environment[SECRETS]))
    process.SystemClock = MovedClock  # type: ignore[misc]
    sys.argv = ["finetune-operator"]
    sys.exit(main())


def _as_in_a_pod(secrets: Path) -> None:
    """In a mount namespace of its own: the ServiceAccount's folder and the API server's name are where a pod has them."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    mounted = Path("/run/secrets/kubernetes.io/serviceaccount")
    for command in (
        ["mount", "--make-rprivate", "/"],
        ["mount", "-t", "tmpfs", "tmpfs", "/run"],
        ["mkdir", "-p", str(mounted.parent)],
        ["ln", "-s", str(secrets), str(mounted)],
        ["mount", "--bind", str(secrets / "hosts"), "/etc/hosts"],
    ):
        subprocess.run(command, check=True, env={"PATH": os.defpath})


class Mortal(Operator):
    """An operator of some namespaces, behind a proxy; `start` again after it died, as the same pod."""

    def __init__(
        self, plane: ControlPlane, folder: Path, proxy: Proxy, lease: str, *, identity: str = "", namespaces: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(plane, folder, identity or lease)
        self._kubeconfig = Path(self._environment["KUBECONFIG"])
        document = yaml.safe_load(self._kubeconfig.read_text())
        for cluster in document["clusters"]:
            cluster["cluster"] = {"server": proxy.url}
        self._kubeconfig.write_text(yaml.safe_dump(document))
        self.clock = folder / f"{self.identity}.clock"
        self._environment |= {
            "FINETUNE_LEASE_NAME": lease, "FINETUNE_NAMESPACES": namespaces, CLOCK: str(self.clock), **(environment or {}),
        }  # fmt: skip
        self.log.touch()
        self.starts = 0
        self._child: multiprocessing.process.BaseProcess | None = None

    def start(self) -> None:
        self.starts += 1
        self._child = _FORKS.Process(target=_run, args=(self._environment, str(self.log)), daemon=True)
        self._child.start()

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    @property
    def alive(self) -> bool:
        """Does the process run?"""
        return self._child is not None and self._child.is_alive()

    @property
    def token(self) -> str:
        """What it shows the API server."""
        return str(yaml.safe_load(self._kubeconfig.read_text())["users"][0]["user"]["token"])

    def in_a_pod(self, address: str, ca: str) -> None:
        """Let it find its token as in a pod, and the API server by its name in the cluster, at that address."""
        secrets = self.log.parent / f"{self.identity}.secrets"
        secrets.mkdir()
        for name, text in (("token", self.token), ("ca.crt", ca), ("hosts", f"127.0.0.1 localhost\n{address} kubernetes.default.svc\n")):
            (secrets / name).write_text(text)
        self._environment |= {SECRETS: str(secrets), "KUBERNETES_SERVICE_HOST": "kubernetes.default.svc", "KUBERNETES_SERVICE_PORT": "443"}

    def renew_in_the_pod(self, token: str) -> None:
        """As the kubelet does, long before the old one runs out."""
        (Path(self._environment[SECRETS]) / "token").write_text(token.strip())

    def renew(self, token: str) -> None:
        """Another token in its kubeconfig."""
        document = yaml.safe_load(self._kubeconfig.read_text())
        document["users"][0]["user"]["token"] = token.strip()
        self._kubeconfig.write_text(yaml.safe_dump(document))

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self._child is not None:
            self._child.kill()
            await asyncio.to_thread(self._child.join)

    def freeze(self, number: signal.Signals) -> None:
        """SIGSTOP or SIGCONT."""
        assert self._child is not None
        assert self._child.pid is not None
        os.kill(self._child.pid, number)

    async def supervise(self) -> None:
        """Start it again whenever it has ended, as a kubelet does."""
        while True:
            await asyncio.sleep(0.2)
            if not self.alive:
                await asyncio.sleep(0.5)
                if not self.alive:  # nobody else has started it meanwhile
                    self.start()
