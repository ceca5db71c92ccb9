"""Who may call, and over what: API keys and TLS at the routers, from Secrets that their pods alone read.

A pod starts only once its Secrets are there: it has a variable of each, which the kubelet looks for before it starts the
container and whose lack it tells. The files themselves are mounted, so that a renewed certificate or another key needs no
restart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from finetune_operator import names
from finetune_operator.api.blocks.serving import Serving
from finetune_operator.build.envoy import TYPE, script

TLS_FOLDER: Final = "/etc/envoy-tls"
KEYS_FOLDER: Final = "/etc/envoy-keys"
KEYS_ENTRY: Final = "keys"  # of the Secret: lines of a name and a key
KEYS_VARIABLE: Final = "FINETUNE_API_KEYS"
CERTIFICATE_VARIABLE: Final = "FINETUNE_CERTIFICATE"
FILTER: Final = "finetune.keys"
SCRIPT: Final = script("keys.lua")
CERTIFICATE: Final = "users"  # its name between the listener and the document of secrets
_TLS: Final = f"{TYPE}.extensions.transport_sockets.tls.v3"


def context(serving: Serving | None, open_path: str) -> dict[str, Any] | None:
    """What the filter of keys is told; None where none are asked for. `open_path` needs no key."""
    if serving is None or serving.api_keys is None:
        return None
    return {"file": f"{KEYS_FOLDER}/{KEYS_ENTRY}", "open": open_path}


def removed_headers(serving: Serving | None) -> list[str]:
    """Headers that no server sees: a key has done its work here. Without keys of ours it may be the server's."""
    return ["authorization"] if serving and serving.api_keys else []


def transport_socket(source: Mapping[str, Any]) -> dict[str, Any]:
    """TLS of a listener, with the certificate from `source`, where `certificates` is served."""
    context = {
        "@type": f"{_TLS}.DownstreamTlsContext",
        "common_tls_context": {
            "alpn_protocols": ["http/1.1"],
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
            "tls_certificate_sds_secret_configs": [{"name": CERTIFICATE, "sds_config": dict(source)}],
        },
    }
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}


def certificates() -> list[dict[str, Any]]:
    """The document of secrets: where the certificate is, read again when the kubelet swaps its folder."""
    files = {"certificate_chain": {"filename": f"{TLS_FOLDER}/tls.crt"}, "private_key": {"filename": f"{TLS_FOLDER}/tls.key"}}
    watched = {"watched_directory": {"path": TLS_FOLDER}}
    return [{"@type": f"{_TLS}.Secret", "name": CERTIFICATE, "tls_certificate": {**files, **watched}}]


def service_port(serving: Serving | None) -> dict[str, Any]:
    """Where users call."""
    if serving is None or serving.tls is None:
        return {"name": "http", "port": names.SERVICE_PORT, "targetPort": "traffic"}
    return {"name": "https", "port": names.SERVICE_TLS_PORT, "targetPort": "traffic-tls"}


def container(serving: Serving | None) -> dict[str, list[dict[str, Any]]]:
    """What is added to the router's container: variables, mounts, ports."""
    mounted = _mounted(serving)
    tls = [{"name": "traffic-tls", "containerPort": names.TLS_PORT}] if serving and serving.tls else []
    return {
        "env": [
            {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": entry}}} for variable, secret, entry, _ in mounted
        ],
        "volumeMounts": [{"name": secret_volume(folder), "mountPath": folder, "readOnly": True} for *_, folder in mounted],
        "ports": tls,
    }


def volumes(serving: Serving | None) -> list[dict[str, Any]]:
    """The Secrets; optional as volumes, for it is the variable that tells of one that is not there."""
    return [
        {"name": secret_volume(folder), "secret": {"secretName": secret, "optional": True}} for _, secret, _, folder in _mounted(serving)
    ]


def secret_volume(folder: str) -> str:
    """Name of the volume that is mounted there."""
    return folder.rpartition("-")[2]


def _mounted(serving: Serving | None) -> list[tuple[str, str, str, str]]:
    """(variable, Secret, entry that must be there, folder)."""
    if serving is None:
        return []
    keys = [(KEYS_VARIABLE, serving.api_keys.secret_name, KEYS_ENTRY, KEYS_FOLDER)] if serving.api_keys else []
    tls = [(CERTIFICATE_VARIABLE, serving.tls.secret_name, "tls.crt", TLS_FOLDER)] if serving.tls else []
    return [*keys, *tls]
