"""The components' configuration files as values: pure, written to disk by whoever starts the component."""

import base64
import json
from pathlib import Path
from typing import Any

from devcluster import paths

Json = dict[str, Any]


def kubeconfig(server: str, pki: Path, name: str) -> str:
    """A self-contained kubeconfig for the identity `name` (JSON, which is YAML too)."""

    def embedded(file: str) -> str:
        return base64.b64encode((pki / file).read_bytes()).decode()

    cluster = {"server": server, "certificate-authority-data": embedded("ca.crt")}
    user = {"client-certificate-data": embedded(f"{name}.crt"), "client-key-data": embedded(f"{name}.key")}
    return _text(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "devcluster", "cluster": cluster}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "devcluster", "context": {"cluster": "devcluster", "user": name}}],
            "current-context": "devcluster",
        }
    )


def audit_policy() -> str:
    """Metadata of every request that tells who changed or read what; the components' own chatter is dropped."""
    chatter = ["system:apiserver", "system:kube-scheduler", "system:kube-controller-manager", "system:kube-proxy"]
    own = [*chatter, "finetune.dev:coredns", "finetune.dev:provisioner"]
    system_namespaces = ["kube-system", "kube-node-lease"]
    return _text(
        {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [
                {"level": "None", "nonResourceURLs": ["/healthz*", "/livez*", "/readyz*", "/version", "/openapi*"]},
                {"level": "None", "nonResourceURLs": ["/api", "/api/*", "/apis", "/apis/*", "/metrics"]},
                {"level": "None", "resources": [{"group": g, "resources": ["events"]} for g in ("", "events.k8s.io")]},
                {"level": "None", "verbs": ["get", "list", "watch"], "users": own},
                {"level": "None", "verbs": ["get", "list", "watch"], "userGroups": ["system:nodes"]},
                {"level": "None", "verbs": ["get", "list", "watch"], "userGroups": ["system:serviceaccounts:kube-system"]},
                {
                    "level": "None",
                    "namespaces": system_namespaces,
                    "resources": [{"group": "coordination.k8s.io", "resources": ["leases"]}],
                },
                {"level": "Metadata"},
            ],
        }
    )


def kubelet(state: Path) -> str:
    return _text(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": paths.BRIDGE_ADDRESS,
            "healthzBindAddress": "127.0.0.1",
            "readOnlyPort": 0,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(state / "pki" / "ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "containerRuntimeEndpoint": f"unix://{state / 'run' / 'containerd.sock'}",
            "cgroupDriver": "cgroupfs",
            "failSwapOn": False,
            "failCgroupV1": False,
            "clusterDNS": [paths.BRIDGE_ADDRESS],
            "clusterDomain": "cluster.local",
            "resolvConf": str(state / "resolv.conf"),
            "podLogsDir": str(state / "pod-logs"),
            "volumePluginDir": str(state / "kubelet" / "volume-plugins"),
            "serializeImagePulls": False,
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "evictionHard": {
                "memory.available": "100Mi",
                "nodefs.available": "1%",
                "nodefs.inodesFree": "1%",
                "imagefs.available": "1%",
                "imagefs.inodesFree": "1%",
            },
        }
    )


def proxy(state: Path) -> str:
    untouched = {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"}
    return _text(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "bindAddress": paths.BRIDGE_ADDRESS,
            "healthzBindAddress": "127.0.0.1:10256",
            "metricsBindAddress": "127.0.0.1:10249",
            "hostnameOverride": paths.NODE_NAME,
            "clusterCIDR": paths.POD_CIDR,
            "clientConnection": {"kubeconfig": str(state / "kubeconfigs" / "proxy")},
            "conntrack": {**untouched, "udpTimeout": "0s", "udpStreamTimeout": "0s"},
            "iptables": {"minSyncPeriod": "200ms", "syncPeriod": "30s", "localhostNodePorts": False},
        }
    )


def containerd(state: Path, images: Path) -> str:
    """`images` is containerd's root: pulled and unpacked images, which are the same after the next `up`."""
    return f"""version = 2
root = "{images}"
state = "{state}/run/containerd"
oom_score = 0
[grpc]
  address = "{state}/run/containerd.sock"
[ttrpc]
  address = "{state}/run/containerd.sock.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{images}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{state}/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{state}/certs.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    discard_unpacked_layers = true
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"""


def registry_mirror() -> str:
    """Every image name is looked up in the local registry."""
    return f'[host."http://{paths.REGISTRY}"]\n  capabilities = ["pull", "resolve"]\n'


def cni(state: Path) -> str:
    addresses = {"subnet": paths.POD_CIDR, "rangeStart": "10.244.1.1", "gateway": paths.BRIDGE_ADDRESS}
    bridge = {
        "type": "bridge",
        "bridge": paths.BRIDGE,
        "isGateway": True,
        "isDefaultGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": {"type": "host-local", "ranges": [[addresses]], "dataDir": str(state / "cni" / "ipam")},
    }
    port_map = {"type": "portmap", "capabilities": {"portMappings": True}}
    return _text({"cniVersion": "0.4.0", "name": "devcluster", "plugins": [bridge, port_map]})


def corefile(state: Path, has_upstream: bool) -> str:
    forward = f"    forward . {state}/resolv.conf\n    loop\n" if has_upstream else ""
    return f""".:53 {{
    bind {paths.BRIDGE_ADDRESS}
    errors
    ready 127.0.0.1:18181
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig {state}/kubeconfigs/coredns
        pods insecure
        ttl 5
        fallthrough in-addr.arpa ip6.arpa
    }}
    cache {{
        success 9984 1
        denial 9984 1
    }}
{forward}}}
"""


def registry(data: Path) -> str:
    return _text(
        {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(data)}, "delete": {"enabled": True}},
            "http": {"addr": paths.REGISTRY},
        }
    )


def _text(value: Json) -> str:
    return json.dumps(value, indent=1) + "\n"
