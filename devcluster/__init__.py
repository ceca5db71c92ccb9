"""A real single-node Kubernetes for a machine that has none, and a control plane alone for integration tests.

Standard library only. `ensure_up()` brings the node up (or finds it up), `ControlPlane` runs etcd, API server,
controller-manager and scheduler side by side with others on loopback ports, `images.ensure()` builds the images.
"""

from devcluster.controlplane import ControlPlane
from devcluster.node import down, ensure_up, pods

__all__ = ["ControlPlane", "down", "ensure_up", "pods"]
