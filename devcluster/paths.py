"""Where everything lives: the cache outlives `down`, the state does not."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
NODE_SOURCES = Path(__file__).resolve().parent / "node"

NODE_NAME = "dev"
BRIDGE = "kbr0"
BRIDGE_ADDRESS = "10.244.0.1"
POD_CIDR = "10.244.0.0/16"
SERVICE_CIDR = "10.96.0.0/16"
SERVICE_ADDRESS = "10.96.0.1"
API_PORT = 6443
REGISTRY = "127.0.0.1:25000"


def cache() -> Path:
    """Folder of what is expensive to make again: node binary, Go, packages, image registry."""
    return Path(os.environ.get("FINETUNE_CACHE") or Path.home() / ".cache" / "finetune-operator")


def state() -> Path:
    """Folder of the running node; `down` removes it."""
    return Path(os.environ.get("FINETUNE_STATE") or "/var/lib/finetune-devcluster")


def unpacked_images() -> Path:
    """containerd's root, a part of the cache: unpacking the trainer's 6 GB takes longer than all else of `up`."""
    return cache() / "containerd"


def kubeconfig() -> Path:
    return state() / "kubeconfig"


def audit_log() -> Path:
    return state() / "audit.log"


def pid_file(name: str) -> Path:
    return state() / "pids" / name


def log_file(name: str) -> Path:
    return state() / "logs" / f"{name}.log"


def containerd_socket() -> Path:
    return state() / "run" / "containerd.sock"


def in_registry(reference: str) -> str:
    """Path under which the registry keeps an image: containerd asks a mirror for the name without its host.

    `finetune.dev/router:1` is `router:1`, `envoyproxy/envoy:v1` stays as it is, `redis:7` is `library/redis:7`.
    """
    first, slash, rest = reference.partition("/")
    if not slash:
        return f"library/{reference}"
    return rest if "." in first or ":" in first or first == "localhost" else reference
