"""etcd, API server, controller-manager and scheduler alone, on free loopback ports, for integration tests.

Any number run side by side. Nothing outlives its maker: all components are one process group, and a keeper at its head ends
the group and removes the folder as soon as the pipe from the maker closes, however the maker ended.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from devcluster import api, components, configs, loopback, nodebinary, packages, pki
from devcluster.components import Plane
from devcluster.shell import DevclusterError, run

# setsid takes the one that cleans up out of the group that it ends.
_KEEPER = """read -r _; exec setsid sh -c 'kill -9 "-$1"; exec rm -rf "$2"' sh "$$" "$1" >/dev/null 2>&1"""
_CLIENTS = ("admin", "apiserver-kubelet", "controller-manager", "scheduler")
_ADDRESS = "127.0.0.1"
_RETRIES = 2  # a free port can be taken by another process before the component listens on it


class ControlPlane:
    """A control plane of its own for as long as the `with` block lasts.

    There is no node: pods stay as they are made (with the scheduler, Pending) and tests write their status. Without the
    controllers nothing makes ServiceAccounts, so the API server does not ask pods for one. `flags` are added to a component's
    own, of which they override the same ones; `audit_policy` replaces the usual one.
    """

    def __init__(
        self, *, controllers: bool = True, scheduler: bool = True, audit_policy: str | None = None,
        flags: Mapping[str, Sequence[str]] | None = None,
    ) -> None:  # fmt: skip
        self._audit_policy = audit_policy or configs.audit_policy()
        self._flags = flags or {}
        self._wanted = [name for name, on in (("controller-manager", controllers), ("scheduler", scheduler)) if on]
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._plane: Plane | None = None

    @property
    def home(self) -> Path:
        """The folder of everything, logs included."""
        return self._started.home

    @property
    def server(self) -> str:
        return self._started.server

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.home / "kubeconfig"

    @property
    def audit_log(self) -> Path:
        return self.home / "audit.log"

    @property
    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self._processes.items()}

    def log(self, component: str) -> str:
        return (self.home / "logs" / f"{component}.log").read_text(errors="replace")

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Standard output of kubectl as administrator; its error is raised as CommandError."""
        return run([self._started.binary, "kubectl", f"--kubeconfig={self.kubeconfig}", *arguments], stdin=stdin)

    def pods(self) -> list[dict[str, Any]] | None:
        """All pods as the API server has them; None while it does not answer."""
        plane = self._started
        return api.items(api.get(_ADDRESS, plane.api_port, plane.pki, "/api/v1/pods"))

    def spawn(self, name: str, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """One more process that ends with the control plane, logged beside the components; the name again replaces it."""
        with (self.home / "logs" / f"{name}.log").open("ab") as sink:
            group = self._processes["keeper"].pid
            self._processes[name] = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, process_group=group, cwd=self.home, env=environment
            )
        return self._processes[name]

    def check(self) -> None:
        """Raise if one of the processes has ended, with the end of its log."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise self._stopped(name, process.returncode)

    def start(self) -> Self:
        """Start and wait until the API answers and, with controllers, the default ServiceAccount is there."""
        packages.ensure(packages.CONTROL_PLANE)
        binary = nodebinary.ensure()
        for _ in range(_RETRIES):
            with contextlib.suppress(_PortTaken):
                return self._try(binary)
        return self._try(binary)

    def restart_api_server(self, *, seconds_away: float = 0) -> None:
        """Kill the API server, leave it away for a while, and wait until one answers again on the same port."""
        plane = self._started
        process = self._processes["kube-apiserver"]
        process.kill()
        process.wait()
        time.sleep(seconds_away)
        self._spawn("kube-apiserver", _api_server(plane, with_controllers="controller-manager" in self._wanted))
        self._wait(plane, "/readyz")

    def stop(self) -> None:
        """End every process at once and remove the folder; repeating it does nothing."""
        plane, self._plane = self._plane, None
        if plane is None:
            return
        keeper = self._processes.get("keeper")
        if keeper is not None and keeper.stdin is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(keeper.pid, signal.SIGKILL)
            keeper.stdin.close()
        for process in self._processes.values():
            process.wait()
        self._processes.clear()
        shutil.rmtree(plane.home, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def _started(self) -> Plane:
        if self._plane is None:
            raise DevclusterError("this control plane is not started, or is stopped")
        return self._plane

    def _try(self, binary: Path) -> Self:
        try:
            self._start(_new_plane(binary))
        except BaseException:
            self.stop()
            raise
        return self

    def _start(self, plane: Plane) -> None:
        self._plane = plane
        keeper = ["/bin/sh", "-c", _KEEPER, "sh", str(plane.home)]
        self._processes["keeper"] = subprocess.Popen(keeper, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, process_group=0)
        _write_files(plane, self._audit_policy)
        self._spawn("etcd", components.etcd(plane))
        self._spawn("kube-apiserver", _api_server(plane, with_controllers="controller-manager" in self._wanted))
        self._wait(plane, "/readyz")
        # These two end by themselves if the API is not there soon after they have started.
        if "controller-manager" in self._wanted:
            self._spawn("controller-manager", components.controller_manager(plane))
        if "scheduler" in self._wanted:
            self._spawn("scheduler", components.scheduler(plane))
        if "controller-manager" in self._wanted:
            self._wait(plane, "/api/v1/namespaces/default/serviceaccounts/default")

    def _spawn(self, name: str, argv: Sequence[str]) -> None:
        self.spawn(name, [*argv, *self._flags.get(name, ())])

    def _wait(self, plane: Plane, path: str, *, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while api.get(_ADDRESS, plane.api_port, plane.pki, path) is None:
            self.check()
            if time.monotonic() > deadline:
                tail = _tail(self.log("kube-apiserver"))
                raise DevclusterError(f"the control plane did not answer {path} in {seconds:.0f} s. The API server's log ends:\n{tail}")
            time.sleep(0.05)

    def _stopped(self, name: str, status: int) -> DevclusterError:
        if name == "keeper":
            return DevclusterError(f"the control plane's keeper ended with {status}")
        log = self.log(name)
        kind = _PortTaken if "address already in use" in log else DevclusterError
        return kind(f"{name} ended with {status}. Its log ends:\n{_tail(log)}")


class _PortTaken(DevclusterError):
    """Another process listens on a port that was free a moment ago."""


def _new_plane(binary: Path) -> Plane:
    api_port, etcd_port, peer_port, controllers_port, scheduler_port = loopback.free_ports(5)
    return Plane(
        binary=binary, home=Path(tempfile.mkdtemp(prefix="finetune-controlplane-")), address=_ADDRESS, api_port=api_port,
        etcd_port=etcd_port, etcd_peer_port=peer_port, controllers_port=controllers_port, scheduler_port=scheduler_port,
        on_node=False,
    )  # fmt: skip


def _write_files(plane: Plane, audit_policy: str) -> None:
    home = plane.home
    for folder in ("logs", "kubeconfigs"):
        (home / folder).mkdir()
    pki.ensure(plane.pki, clients={name: pki.CLIENTS[name] for name in _CLIENTS}, server_names=plane.server_names)
    for name in _CLIENTS:
        (home / "kubeconfigs" / name).write_text(configs.kubeconfig(plane.server, plane.pki, name))
    (home / "kubeconfig").write_text(configs.kubeconfig(plane.server, plane.pki, "admin"))
    (home / "audit-policy.json").write_text(audit_policy)


def _api_server(plane: Plane, *, with_controllers: bool) -> list[str]:
    relaxed = [] if with_controllers else ["--disable-admission-plugins=ServiceAccount"]
    return [*components.api_server(plane), *relaxed]


def _tail(text: str) -> str:
    return "\n".join(text.splitlines()[-15:])
