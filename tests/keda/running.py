"""A real KEDA on a control plane: its CRDs, its operator and its metrics server, all from its Go module.

Its operator and its metrics server are processes on loopback, with the administrator's rights; they and the API server know each
other by certificates of one authority, as in a cluster.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import yaml

from devcluster import loopback
from devcluster.controlplane import ControlPlane
from tests import aggregated, gomodule, goprogram

VERSION: Final = "v2.21.0"
MODULE: Final = f"github.com/kedacore/keda/v2@{VERSION}"
SUM: Final = "h1:R6z2HZvstK4RLUMxroNACzBj74xGxt3kG59b5Xc+Xps="
GO: Final = (1, 26)
NAMESPACE: Final = "keda"
SERVICE: Final = "keda-metrics-apiserver"
API: Final = "v1beta1.external.metrics.k8s.io"


def program(name: str) -> Path:
    """`operator` or `adapter` (the metrics server)."""
    return goprogram.ensure(f"keda-{name}", gomodule.folder(MODULE, SUM, GO), GO, f"./cmd/{name}", checksum=SUM)


def certificates(folder: Path) -> None:
    """One authority; who serves, who asks KEDA's operator for figures, and the API server as it asks the metrics server."""
    aggregated.certificates(folder, SERVICE, NAMESPACE, adapter="/CN=keda-adapter")
    for owner, identity in (("operator", "serving"), ("adapter", "adapter")):
        (own := folder / owner).mkdir()
        for kept, called in (("ca.crt", "ca.crt"), (f"{identity}.crt", "tls.crt"), (f"{identity}.key", "tls.key")):
            shutil.copy(folder / kept, own / called)


def install(plane: ControlPlane, folder: Path) -> None:
    """Start it, with the certificates of the folder, and wait until the API server takes its metrics."""
    crds = gomodule.folder(MODULE, SUM, GO) / "config" / "crd" / "bases"
    plane.kubectl("apply", "--server-side", "-f", str(crds))
    plane.kubectl("wait", "--for=condition=Established", "--all", "crd", "--timeout=60s")
    health, figures, secure, metrics = loopback.free_ports(4)
    plane.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(aggregated.registration(folder, API, SERVICE, NAMESPACE, secure)))
    own = {"POD_NAMESPACE": NAMESPACE, "KEDA_CLUSTER_OBJECT_NAMESPACE": NAMESPACE}
    environment = {"KUBECONFIG": str(plane.kubeconfig), "WATCH_NAMESPACE": "", **own}
    operator = [
        f"--cert-dir={folder}/operator", "--metrics-bind-address=0", f"--health-probe-bind-address=127.0.0.1:{health}",
        f"--metrics-service-bind-address=127.0.0.1:{figures}",
    ]  # fmt: skip
    adapter = [
        f"--cert-dir={folder}/adapter", f"--tls-cert-file={folder}/serving.crt", f"--tls-private-key-file={folder}/serving.key",
        "--bind-address=127.0.0.1", f"--secure-port={secure}", f"--port={metrics}", f"--metrics-service-address=127.0.0.1:{figures}",
        *(f"--{use}-kubeconfig={plane.kubeconfig}" for use in ("authentication", "authorization", "lister")),
    ]  # fmt: skip
    plane.spawn("keda-operator", [str(program("operator")), *operator], environment)
    plane.spawn("keda-adapter", [str(program("adapter")), *adapter], environment)
    try:
        plane.kubectl("wait", "--for=condition=Available", f"apiservice/{API}", "--timeout=90s")
    except Exception:
        print(plane.log("keda-operator")[-4000:], plane.log("keda-adapter")[-4000:], sep="\n---\n")
        raise
    plane.check()
