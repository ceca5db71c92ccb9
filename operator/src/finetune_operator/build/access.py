"""Who may call, and over what: API keys and TLS at the routers, from Secrets that their pods alone read.

A pod starts only once its Secrets are there. They are mounted, so that a renewed certificate or another key needs no restart. Of the
certificate there is a variable too, for the kubelet says at once which one it lacks; there is none of the keys: a variable holds 128 KiB
at the most, and a Secret 1 MiB.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from finetune_operator import names
from finetune_operator.api.blocks.serving import Serving
from finetune_operator.build.envoy import TYPE, script

TLS_FOLDER: Final = "/etc/envoy-tls"
KEYS_FOLDER: Final = "/etc/envoy-keys"
KEYS_ENTRY: Final = "keys"  # of the Secret: lines of a name and a key
KEYS_VARIABLE: Final = "FINETUNE_API_KEYS"  # where they are; it was the keys themselves once, and a router asks for them with either
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
    keys, tls = _asked(serving)
    certificate = {"secretKeyRef": {"name": tls, "key": "tls.crt"}}
    return {
        "env": [
            *([{"name": KEYS_VARIABLE, "value": f"{KEYS_FOLDER}/{KEYS_ENTRY}"}] if keys else []),
            *([{"name": CERTIFICATE_VARIABLE, "valueFrom": certificate}] if tls else []),
        ],
        "volumeMounts": [{"name": volume["name"], "mountPath": folder, "readOnly": True} for folder, volume in _volumes(serving)],
        "ports": [{"name": "traffic-tls", "containerPort": names.TLS_PORT}] if tls else [],
    }


def volumes(serving: Serving | None) -> list[dict[str, Any]]:
    """The Secrets; TLS's optional as a volume, for it is the variable that tells of one that is not there."""
    return [volume for _, volume in _volumes(serving)]


def secret_volume(folder: str) -> str:
    """Name of the volume that is mounted there."""
    return folder.rpartition("-")[2]


def _volumes(serving: Serving | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(folder, volume)."""
    keys, tls = _asked(serving)
    if keys:
        entry = {"key": KEYS_ENTRY, "path": KEYS_ENTRY}
        yield KEYS_FOLDER, {"name": secret_volume(KEYS_FOLDER), "secret": {"secretName": keys, "items": [entry], "optional": False}}
    if tls:
        yield TLS_FOLDER, {"name": secret_volume(TLS_FOLDER), "secret": {"secretName": tls, "optional": True}}


def _asked(serving: Serving | None) -> tuple[str, str]:
    """The Secrets of the keys and of TLS; empty where none is asked for."""
    keys, tls = (serving.api_keys, serving.tls) if serving else (None, None)
    return keys.secret_name if keys else "", tls.secret_name if tls else ""
