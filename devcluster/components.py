"""Command lines of the components: pure functions of folders and addresses."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from devcluster import paths

Argv = list[str]


@dataclass(frozen=True)
class Plane:
    """What etcd, API server, controller-manager and scheduler of one control plane share."""

    binary: Path
    home: Path  # pki/, kubeconfigs/, etcd/, audit.log, audit-policy.json
    address: str  # where the API server listens
    api_port: int
    etcd_port: int
    etcd_peer_port: int
    controllers_port: int = 10257
    scheduler_port: int = 10259
    on_node: bool = True  # a kubelet joins; Services have endpoints

    @property
    def server(self) -> str:
        return f"https://{self.address}:{self.api_port}"

    @property
    def pki(self) -> Path:
        return self.home / "pki"

    @property
    def server_names(self) -> Sequence[str]:
        service = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
        return [*service, "localhost", "127.0.0.1", self.address, paths.SERVICE_ADDRESS]


def etcd(plane: Plane) -> Argv:
    client, peer = (f"http://127.0.0.1:{port}" for port in (plane.etcd_port, plane.etcd_peer_port))
    return [
        str(plane.binary), "etcd", "--name=dev", f"--data-dir={plane.home}/etcd", "--unsafe-no-fsync", "--log-level=warn",
        f"--listen-client-urls={client}", f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=dev={peer}",
    ]  # fmt: skip


def api_server(plane: Plane) -> Argv:
    pki = plane.pki
    if plane.on_node:
        modes = ["--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction"]
    else:  # nothing can reach the kubernetes Service of a loopback API server: leave it without endpoints
        modes = ["--authorization-mode=RBAC", "--endpoint-reconciler-type=none"]
    return [
        str(plane.binary), "kube-apiserver", f"--bind-address={plane.address}", f"--secure-port={plane.api_port}",
        f"--advertise-address={plane.address}", f"--etcd-servers=http://127.0.0.1:{plane.etcd_port}", *modes,
        f"--service-cluster-ip-range={paths.SERVICE_CIDR}", "--allow-privileged=true", "--profiling=false",
        f"--client-ca-file={pki}/ca.crt", f"--requestheader-client-ca-file={pki}/ca.crt",
        "--requestheader-allowed-names=front-proxy", "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group", "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--tls-cert-file={pki}/serving.crt",
        f"--tls-private-key-file={pki}/serving.key", "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={pki}/service-account.pub",
        f"--service-account-signing-key-file={pki}/service-account.key",
        f"--kubelet-client-certificate={pki}/apiserver-kubelet.crt", f"--kubelet-client-key={pki}/apiserver-kubelet.key",
        "--kubelet-preferred-address-types=InternalIP,Hostname", f"--audit-policy-file={plane.home}/audit-policy.json",
        f"--audit-log-path={plane.home}/audit.log", "--audit-log-maxsize=200", "--audit-log-maxbackup=2",
    ]  # fmt: skip


def controller_manager(plane: Plane) -> Argv:
    pki = plane.pki
    return [
        str(plane.binary), "kube-controller-manager", "--bind-address=127.0.0.1",
        f"--secure-port={plane.controllers_port}", *_kubeconfigs(plane, "controller-manager"),
        "--use-service-account-credentials=true", f"--root-ca-file={pki}/ca.crt",
        f"--service-account-private-key-file={pki}/service-account.key",
        f"--cluster-signing-cert-file={pki}/ca.crt", f"--cluster-signing-key-file={pki}/ca.key",
        "--leader-elect=false", "--kube-api-qps=500", "--kube-api-burst=1000", "--profiling=false",
    ]  # fmt: skip


def scheduler(plane: Plane) -> Argv:
    return [
        str(plane.binary), "kube-scheduler", "--bind-address=127.0.0.1", f"--secure-port={plane.scheduler_port}",
        *_kubeconfigs(plane, "scheduler"), "--leader-elect=false", "--kube-api-qps=500", "--kube-api-burst=1000",
        "--profiling=false",
    ]  # fmt: skip


def _kubeconfigs(plane: Plane, name: str) -> Argv:
    file = plane.home / "kubeconfigs" / name
    return [f"--kubeconfig={file}", f"--authentication-kubeconfig={file}", f"--authorization-kubeconfig={file}"]


def kubelet(plane: Plane) -> Argv:
    return [
        str(plane.binary), "kubelet", f"--config={plane.home}/kubelet.json",
        f"--kubeconfig={plane.home}/kubeconfigs/kubelet", f"--root-dir={plane.home}/kubelet",
        f"--cert-dir={plane.home}/kubelet/pki", f"--node-ip={paths.BRIDGE_ADDRESS}",
        f"--hostname-override={paths.NODE_NAME}",
    ]  # fmt: skip


def proxy(plane: Plane) -> Argv:
    return [str(plane.binary), "kube-proxy", f"--config={plane.home}/proxy.json"]


def coredns(plane: Plane) -> Argv:
    return [str(plane.binary), "coredns", "-conf", f"{plane.home}/Corefile"]


def provisioner(plane: Plane) -> Argv:
    return [
        str(plane.binary), "provisioner", f"--kubeconfig={plane.home}/kubeconfigs/provisioner",
        f"--root={plane.home}/volumes", f"--node={paths.NODE_NAME}",
    ]  # fmt: skip


def containerd(home: Path) -> Argv:
    return ["/usr/bin/containerd", "--config", f"{home}/containerd.toml", "--log-level", "warn"]


def registry(home: Path) -> Argv:
    return ["/usr/bin/docker-registry", "serve", f"{home}/registry.json"]
