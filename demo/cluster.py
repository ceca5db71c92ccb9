"""The cluster under the demo: the built-in node, kind, or the one that kubectl points at; and the chart in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from demo.kube import CRD, DemoError, Kubectl

Choice = Literal["auto", "current", "kind", "node"]
REPOSITORY = Path(__file__).resolve().parent.parent
CHART = REPOSITORY / "charts" / "finetune-operator"
OPERATOR_NAMESPACE = "finetune-system"
KIND_NAME = "finetune-demo"
READY_SECONDS = 180
ON_CURRENT = """make demo CLUSTER=current IMAGES='{"operator":"…","trainer":"…"}'"""
KIND_IMAGES = {
    "operator": ("finetune-operator:demo", "operator/Dockerfile"),
    "trainer": ("finetune-trainer:demo", "Dockerfile.trainer"),
}


@dataclass(frozen=True)
class Cluster:
    """A running cluster: how to talk to it, and the images in it ({operator, trainer, router} → reference)."""

    kind: Literal["current", "kind", "node"]
    kubectl: Kubectl
    images: Mapping[str, str]


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say what is being done, and how long it took."""
    print(f"→ {what} …", flush=True)
    start = time.monotonic()
    yield
    print(f"  done in {time.monotonic() - start:.0f} s", flush=True)


def resolve(choice: Choice) -> Literal["current", "kind", "node"]:
    """`auto` is the built-in node where it can run (Linux, as root), else kind; says which. Raises DemoError where neither can."""
    if choice != "auto":
        return choice
    if _node_can_run():
        return _chosen("node", "the built-in node")
    if shutil.which("kind") and _succeeds("docker", "info"):
        return _chosen("kind", "kind, for the built-in node needs Linux and root")
    raise DemoError(
        "no cluster can be started here: the built-in node needs Linux and root, kind needs kind and a running Docker. "
        f"For the cluster that kubectl points at: {ON_CURRENT}"
    )


def _chosen(found: Literal["kind", "node"], what: str) -> Literal["kind", "node"]:
    print(f"→ cluster: {what} (CLUSTER=node, kind or current chooses another)", flush=True)
    return found


def _node_can_run() -> bool:
    return sys.platform == "linux" and os.geteuid() == 0


def up(choice: Choice, images: Mapping[str, str]) -> Cluster:
    """Start what has to be started and build the images; `images` are those that the current cluster is to pull."""
    match resolve(choice):
        case "node":
            return _node()
        case "kind":
            return _kind()
        case "current":
            return _current(images)


def _current(images: Mapping[str, str]) -> Cluster:
    """The cluster that kubectl points at; nothing is built for it. Raises DemoError for images that are not named."""
    if missing := [name for name in KIND_IMAGES if not images.get(name)]:
        raise DemoError(
            f"no image is named for: {', '.join(missing)}. Build and push them where the cluster can pull "
            f'(README, "Install it on a real cluster"), then: {ON_CURRENT}'
        )
    return Cluster("current", Kubectl(), images)


def _node() -> Cluster:
    with step("starting the built-in node (its first build takes minutes)"):
        _last_line(sys.executable, "-m", "devcluster", "up")
    with step("building the images (the first time takes minutes)"):
        images = json.loads(_last_line(sys.executable, "-m", "devcluster", "images"))
    return Cluster("node", node_kubectl(), images)


def node_kubectl() -> Kubectl:
    """kubectl of the built-in node: a command of its one binary."""
    from devcluster import nodebinary, paths

    binary = nodebinary.cached()
    if binary is None:
        raise DemoError("the built-in node is not built: `make cluster-up`")
    return Kubectl((str(binary), "kubectl"), {"KUBECONFIG": str(paths.kubeconfig())})


def _kind() -> Cluster:
    kubectl = Kubectl(("kubectl", "--context", f"kind-{KIND_NAME}"))
    with step("starting kind"):
        if KIND_NAME not in _last_line("kind", "get", "clusters", lines=100).split():
            _last_line("kind", "create", "cluster", "--name", KIND_NAME, "--wait", "120s")
    for name, (tag, dockerfile) in KIND_IMAGES.items():
        with step(f"building the {name} image with Docker"):
            _last_line("docker", "build", "-t", tag, "-f", dockerfile, ".")
            _last_line("kind", "load", "docker-image", tag, "--name", KIND_NAME)
    return Cluster("kind", kubectl, {name: tag for name, (tag, _) in KIND_IMAGES.items()})


def install(cluster: Cluster, *values: str) -> None:
    """Install or upgrade the chart, with these `name=value`, and wait until the operator is ready."""
    with step("installing the chart and waiting for the operator"):
        context = ["--kube-context", f"kind-{KIND_NAME}"] if cluster.kind == "kind" else []
        helm(
            cluster.kubectl, "upgrade", "--install", "finetune-operator", str(CHART), "-n", OPERATOR_NAMESPACE,
            "--create-namespace", *context, *chart_values(cluster.images), *(word for value in values for word in ("--set", value)),
        )  # fmt: skip
        cluster.kubectl("wait", "--for", "condition=Established", f"crd/{CRD}", f"--timeout={READY_SECONDS}s")
        cluster.kubectl(
            "-n", OPERATOR_NAMESPACE, "rollout", "status", "deployment", "-l",
            "app.kubernetes.io/name=finetune-operator", f"--timeout={READY_SECONDS}s", seconds=READY_SECONDS + 30,
        )  # fmt: skip


def chart_values(images: Mapping[str, str]) -> list[str]:
    """Helm arguments that put these images in."""
    return [word for name, reference in sorted(images.items()) for word in ("--set", f"images.{name}={reference}")]


def helm(kubectl: Kubectl, *args: str) -> None:
    """Run the project's Helm against the cluster. Raises DemoError with what it said."""
    command = [sys.executable, str(REPOSITORY / "charts" / "helm.py"), *args]
    done = subprocess.run(command, cwd=REPOSITORY, env={**os.environ, **kubectl.env}, capture_output=True, text=True)
    if done.returncode != 0:
        raise DemoError(f"helm {' '.join(args[:3])}: {(done.stderr or done.stdout).strip()[-2000:]}")


def down(choice: Choice, namespace: str) -> None:
    """Remove the demo: the whole node or kind cluster, or on the current cluster its namespaces, chart and CRD."""
    match resolve(choice):
        case "node":
            _last_line(sys.executable, "-m", "devcluster", "down")
        case "kind":
            _last_line("kind", "delete", "cluster", "--name", KIND_NAME)
        case "current":
            kubectl = Kubectl()
            kubectl.remove_namespace(namespace)
            with suppress(DemoError):
                helm(kubectl, "uninstall", "finetune-operator", "-n", OPERATOR_NAMESPACE)
            kubectl("delete", "crd", CRD, "--ignore-not-found")
            kubectl("delete", "namespace", OPERATOR_NAMESPACE, "--ignore-not-found", "--timeout=300s", seconds=330)


def _succeeds(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _last_line(*command: str, lines: int = 1) -> str:
    """The last line(s) of a command's standard output; its messages go straight to the user's screen."""
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise DemoError(f"`{_readable(command)}` ended with {done.returncode}: see above")
    return "\n".join(done.stdout.strip().splitlines()[-lines:])


def _readable(command: Iterable[str]) -> str:
    return " ".join("python3" if word == sys.executable else word for word in command)
