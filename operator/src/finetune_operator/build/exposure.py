"""The way in from outside the cluster: an Ingress, or an HTTPRoute of the Gateway API, to the Service of the routers.

Never to an arm, for the split is the routers', and to the OpenAI API alone: what else a server answers (metrics, health) stays inside.
"""

from __future__ import annotations

from typing import Final

from finetune_operator import kinds, names
from finetune_operator.api.blocks.expose import Expose, HttpRoute, Ingress
from finetune_operator.api.blocks.serving import Serving
from finetune_operator.api.fields import digest
from finetune_operator.build import access
from finetune_operator.build.envoy import REQUEST_SECONDS
from finetune_operator.build.pods import Manifest, Owner
from finetune_operator.kinds import Kind

PATH: Final = "/v1"
GATEWAY_TIMEOUT: Final = f"{REQUEST_SECONDS + 10}s"  # longer than the routers' own, so that they say what is the matter


def kind(expose: Expose) -> Kind:
    """What exposes it."""
    return kinds.INGRESS if isinstance(expose.way, Ingress) else kinds.HTTP_ROUTE


def url(expose: Expose) -> str:
    """Where users outside the cluster call. What ends TLS in front of an Ingress or at a Gateway only the user knows (`scheme`)."""
    encrypted = isinstance(expose.way, Ingress) and expose.way.tls_secret_name
    return f"{expose.scheme or ('https' if encrypted else 'http')}://{expose.way.host}{PATH}"


def child(owner: Owner, serving: Serving, expose: Expose) -> Manifest:
    """The Ingress or HTTPRoute, annotated with the digest of what was asked for: what is asked for no more shows by that alone."""
    way, port, made = expose.way, int(access.service_port(serving)["port"]), kind(expose)
    annotations = dict(way.annotations or {}) if isinstance(way, Ingress) else {}
    spec = _ingress(owner, way, port) if isinstance(way, Ingress) else _http_route(owner, way, port)
    meta = owner.metadata(names.users_service(owner.name), "router")
    meta["annotations"] = {**annotations, names.MANIFEST: digest({"spec": spec, "annotations": annotations})}
    return {"apiVersion": made.api_version, "kind": made.kind, "metadata": meta, "spec": spec}


def _ingress(owner: Owner, ingress: Ingress, port: int) -> Manifest:
    backend = {"service": {"name": names.users_service(owner.name), "port": {"number": port}}}
    secret = ingress.tls_secret_name
    return {
        "ingressClassName": ingress.class_name,
        "rules": [{"host": ingress.host, "http": {"paths": [{"path": PATH, "pathType": "Prefix", "backend": backend}]}}],
        "tls": [{"hosts": [ingress.host], "secretName": secret}] if secret else [],  # said also when empty, so that it is taken back
    }


def _http_route(owner: Owner, route: HttpRoute, port: int) -> Manifest:
    rule = {
        "matches": [{"path": {"type": "PathPrefix", "value": PATH}}],
        "backendRefs": [{"name": names.users_service(owner.name), "port": port}],
        "timeouts": {"request": GATEWAY_TIMEOUT},
    }
    parents = [ref.model_dump(by_alias=True, exclude_none=True) for ref in route.parent_refs]
    return {"parentRefs": parents, "hostnames": [*route.hostnames], "rules": [rule]}
