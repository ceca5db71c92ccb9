"""The node's life: up (fresh, reused, or recovered after a crash), down, status.

Whatever killed it, `up` first makes the host as after a reboot, then starts everything on the files that are left;
if that node does not become ready, it starts again from nothing.
"""

import datetime
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from devcluster import api, cleanup, components, configs, manifests, network, nodebinary, packages, paths, pause, pki, procs
from devcluster.components import Plane
from devcluster.shell import DevclusterError, Progress, lock, run, say, wait_for

COMPONENTS = (
    "registry", "containerd", "etcd", "kube-apiserver", "kubelet", "kube-controller-manager", "kube-scheduler",
    "kube-proxy", "coredns", "provisioner",
)  # fmt: skip
_LOOPBACK = "127.0.0.1"
_KUBELET = (paths.BRIDGE_ADDRESS, 10250)
_PORTS = {
    (_LOOPBACK, 22379): "an etcd", (_LOOPBACK, 22380): "an etcd", (_LOOPBACK, 25000): "a registry",
    (paths.BRIDGE_ADDRESS, paths.API_PORT): "an API server", (paths.BRIDGE_ADDRESS, 53): "a DNS server", _KUBELET: "a kubelet",
    (_LOOPBACK, 10249): "a kube-proxy", (_LOOPBACK, 10256): "a kube-proxy", (_LOOPBACK, 10257): "a controller-manager",
    (_LOOPBACK, 10259): "a scheduler",
}  # fmt: skip
_EXPECTED = {"packages": 15.0, "node binary": 480.0, "clean host": 0.5, "control plane": 5.0, "node ready": 6.0}


def ensure_up() -> bool:
    """Bring the node up; True if it had to be started, False if it was up and is reused as it is."""
    if healthy():
        return False
    with lock("devcluster"):
        if healthy():
            return False
        _require_root()
        _refuse_others(_PORTS)
        built = {"node binary"} if nodebinary.cached() else set()
        progress = Progress("up", {phase: seconds for phase, seconds in _EXPECTED.items() if phase not in built})
        with progress.phase("packages"):
            packages.ensure(packages.NODE)
        with progress.phase("node binary"):
            plane = _plane(nodebinary.ensure())
        recovering = any(path.exists() for path in (paths.state() / "etcd" / "member", paths.unpacked_images()))
        try:
            _start(plane, progress)
        except DevclusterError as problem:
            if not recovering:
                raise
            say(f"what the last node left cannot be used ({problem}); starting from nothing")
            cleanup.stop_everything(paths.state())
            cleanup.remove_files(paths.state())
            shutil.rmtree(paths.unpacked_images(), ignore_errors=True)
            _start(plane, progress)
        progress.remember()
    return True


def down() -> list[str]:
    """Remove the node and all it left on the host, keeping the cache; returns what could not be removed."""
    _require_root()
    with lock("devcluster"):
        _refuse_others({_KUBELET: _PORTS[_KUBELET]})  # its pods and mounts are where ours would be
        progress = Progress("down", {"stop": 5.0, "remove files": 5.0})
        with progress.phase("stop"):
            cleanup.stop_everything(paths.state())
        with progress.phase("remove files"):
            cleanup.remove_files(paths.state())
        progress.remember()
        return cleanup.left_behind(paths.state())


def healthy() -> bool:
    """All components run, the API server is ready, and the node is Ready by a heartbeat of this run."""
    if not all(procs.running(paths.pid_file(name)) for name in COMPONENTS):
        return False
    ready = _get("/readyz") == "ok"
    return ready and _node_ready(since=(paths.state() / "started").stat().st_mtime)


def status() -> dict[str, object]:
    """Components with their pids, the node's condition, and where to find what."""
    running = {name: procs.running(paths.pid_file(name)) for name in COMPONENTS}
    up = any(running.values())
    return {
        "up": up and healthy(),
        "components": running,
        "node": api.condition(_get(f"/api/v1/nodes/{paths.NODE_NAME}"), "Ready").get("message", "") if up else "",
        "kubeconfig": str(paths.kubeconfig()),
        "auditLog": str(paths.audit_log()),
        "logs": str(paths.state() / "logs"),
        "registry": paths.REGISTRY,
        "cache": str(paths.cache()),
        "leftBehind": [] if up else cleanup.left_behind(paths.state()),
    }


def pods() -> list[dict[str, Any]] | None:
    """All pods as the API server has them; None while it does not answer."""
    return api.items(_get("/api/v1/pods"))


def start_registry() -> None:
    """The local image registry alone; its data is in the cache."""
    if procs.running(paths.pid_file("registry")):
        return
    home = paths.state()
    home.mkdir(parents=True, exist_ok=True)
    data = paths.cache() / "registry"
    data.mkdir(parents=True, exist_ok=True)
    _write(home / "registry.json", configs.registry(data))
    _spawn("registry", components.registry(home))


def not_pulled(images: Iterable[str]) -> set[str]:
    """Those of the images that the node's runtime lacks; none if no runtime is up."""
    if not procs.running(paths.pid_file("containerd")):
        return set()
    return set(images) - set(_ctr("images", "list", "-q"))


def pull(image: str) -> None:
    """Bring an image of the registry into the runtime as the kubelet would."""
    run([nodebinary.ensure(), "pull", f"--endpoint=unix://{paths.containerd_socket()}", image])


def images_in_use() -> set[str]:
    """The images of the containers that the runtime has."""
    if not procs.running(paths.pid_file("containerd")):
        return set()
    return {line.split()[1] for line in _ctr("containers", "list")[1:]}


def forget_images(kept: Collection[str]) -> None:
    """Make the runtime forget the images whose tags left the registry; `kept` has the paths that are there."""
    if procs.running(paths.pid_file("containerd")):
        gone = forgotten(_ctr("images", "list")[1:], kept)
        if gone:
            _ctr("images", "remove", *gone)


def forgotten(listing: Iterable[str], kept: Collection[str]) -> list[str]:
    """All names of the images of which no tag is kept; the runtime knows each by tag, by digest and by id."""
    by_digest: dict[str, list[str]] = {}
    for name, _, digest in (line.split()[:3] for line in listing):
        by_digest.setdefault(digest, []).append(name)

    def stays(name: str) -> bool:
        return name == pause.IMAGE or paths.in_registry(name) in kept

    return [name for names in by_digest.values() if not any(map(stays, names)) for name in names]


def _ctr(*arguments: str) -> list[str]:
    return run(["ctr", "--address", paths.containerd_socket(), "-n", "k8s.io", *arguments]).splitlines()


def _start(plane: Plane, progress: Progress) -> None:
    with progress.phase("clean host"):
        cleanup.stop_everything(paths.state())
    with progress.phase("control plane"):
        _prepare(plane)
        start_registry()
        _spawn("containerd", components.containerd(plane.home))
        _spawn("etcd", components.etcd(plane))
        _spawn("kube-apiserver", components.api_server(plane))
        _wait("containerd", "its socket", paths.containerd_socket().exists)
        pause.load(paths.containerd_socket())
        _wait("kube-apiserver", "the API", lambda: _get("/readyz") == "ok")
    with progress.phase("node ready"):
        started = time.time()
        _spawn("kubelet", components.kubelet(plane))
        _spawn("kube-controller-manager", components.controller_manager(plane))
        _spawn("kube-scheduler", components.scheduler(plane))
        _spawn("kube-proxy", components.proxy(plane))
        kubectl = [str(plane.binary), "kubectl", f"--kubeconfig={paths.kubeconfig()}"]
        run([*kubectl, "apply", "-f", "-"], stdin=manifests.bootstrap())
        _spawn("coredns", components.coredns(plane))
        _spawn("provisioner", components.provisioner(plane))
        mark = plane.home / "started"
        mark.touch()
        os.utime(mark, (started, started))
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        _wait("kubelet", "the node to be Ready", lambda: _node_ready(since=started))
        _wait("kube-controller-manager", "the default ServiceAccount", lambda: _get(account) is not None)
        for name in COMPONENTS:
            _must_run(name)


def _plane(binary: Path) -> Plane:
    return Plane(
        binary=binary, home=paths.state(), address=paths.BRIDGE_ADDRESS, api_port=paths.API_PORT,
        etcd_port=22379, etcd_peer_port=22380,
    )  # fmt: skip


def _prepare(plane: Plane) -> None:
    home = plane.home
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o755)
    network.up(home)
    clients = {**pki.CLIENTS, "kubelet": f"/O=system:nodes/CN=system:node:{paths.NODE_NAME}"}
    pki.ensure(plane.pki, clients=clients, server_names=plane.server_names)
    for name in clients:
        _write(home / "kubeconfigs" / name, configs.kubeconfig(plane.server, plane.pki, name), mode=0o600)
    _write(paths.kubeconfig(), configs.kubeconfig(plane.server, plane.pki, "admin"), mode=0o600)
    upstream = [line for line in Path("/etc/resolv.conf").read_text().splitlines() if line.startswith("nameserver")]
    files = {
        "resolv.conf": "".join(f"{line}\n" for line in upstream),
        "audit-policy.json": configs.audit_policy(),
        "containerd.toml": configs.containerd(home, paths.unpacked_images()),
        "certs.d/_default/hosts.toml": configs.registry_mirror(),
        "cni/net.d/10-devcluster.conflist": configs.cni(home),
        "kubelet.json": configs.kubelet(home),
        "proxy.json": configs.proxy(home),
        "Corefile": configs.corefile(home, bool(upstream)),
    }
    for name, text in files.items():
        _write(home / name, text)
    (home / "volumes").mkdir(exist_ok=True)
    (home / "run").mkdir(exist_ok=True)


def _write(file: Path, text: str, *, mode: int = 0o644) -> None:
    """Write only what differs: kube-proxy ends when its configuration file is written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists() or file.read_text() != text:
        file.write_text(text)
    file.chmod(mode)


def _spawn(name: str, argv: Sequence[str]) -> None:
    group = cleanup.component_group()
    procs.spawn(argv, pid_file=paths.pid_file(name), log=paths.log_file(name), cgroup=group)


def _get(path: str) -> object:
    return api.get(paths.BRIDGE_ADDRESS, paths.API_PORT, paths.state() / "pki", path)


def _node_ready(*, since: float) -> bool:
    ready = api.condition(_get(f"/api/v1/nodes/{paths.NODE_NAME}"), "Ready")
    if ready.get("status") != "True":
        return False
    beat = datetime.datetime.fromisoformat(ready["lastHeartbeatTime"].replace("Z", "+00:00"))
    return beat.timestamp() >= int(since)


def _wait(component: str, what: str, ready: Callable[[], bool]) -> None:
    """Wait for what a component brings about; the wait ends with any component that has stopped."""

    def ready_or_stopped() -> bool:
        for name in COMPONENTS:
            if paths.pid_file(name).exists():
                _must_run(name)
        return ready()

    wait_for(what, ready_or_stopped, seconds=90, hint=f"See {paths.log_file(component)}")


def _must_run(name: str) -> None:
    if procs.running(paths.pid_file(name)) is None:
        tail = "\n".join(paths.log_file(name).read_text(errors="replace").splitlines()[-5:])
        raise DevclusterError(f"{name} has stopped. Its log ({paths.log_file(name)}) ends:\n{tail}")


def _refuse_others(wanted: Mapping[tuple[str, int], str]) -> None:
    """Another Kubernetes or registry on our addresses is named before anything on the host is touched."""
    ours = cleanup.own_pids(paths.state())
    others = [listener for listener in network.listeners() if not listener.pids & ours]
    for (address, port), whose in wanted.items():
        if any(listener.in_the_way(address, port) for listener in others):
            raise DevclusterError(f"port {port} is taken: {whose} that is not ours runs here. Stop it first.")


def _require_root() -> None:
    if os.geteuid() != 0:
        raise DevclusterError("the built-in node needs root (namespaces, mounts, bridge): run this as root")
