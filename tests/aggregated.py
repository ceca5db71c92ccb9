"""An API that the API server passes on to a server of the tests, at a port of this machine, over TLS as in a cluster."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from devcluster import pki

CALLER: Final = "front-proxy"  # as which the API server asks


def certificates(folder: Path, service: str, namespace: str, **clients: str) -> None:
    """One authority, who serves, and the API server as it asks; and other clients, name by subject."""
    names = ["localhost", "127.0.0.1", f"{service}.{namespace}.svc"]
    pki.ensure(folder, clients={CALLER: f"/CN={CALLER}", **clients}, server_names=names)


def flags(folder: Path) -> Sequence[str]:
    """Of an API server that passes requests on."""
    return [
        f"--requestheader-client-ca-file={folder}/ca.crt",
        f"--proxy-client-cert-file={folder}/{CALLER}.crt", f"--proxy-client-key-file={folder}/{CALLER}.key",
    ]  # fmt: skip


def registration(folder: Path, api: str, service: str, namespace: str, port: int) -> list[dict[str, Any]]:
    """What leads the API server to the API (`version.group`)."""
    version, _, group = api.partition(".")
    authority = base64.b64encode((folder / "ca.crt").read_bytes()).decode()
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
        {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": service, "namespace": namespace},
            "spec": {"type": "ExternalName", "externalName": "localhost"},
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": api},
            "spec": {
                "group": group, "version": version, "groupPriorityMinimum": 100, "versionPriority": 100,
                "service": {"name": service, "namespace": namespace, "port": port}, "caBundle": authority,
            },
        },
    ]  # fmt: skip
