"""What an Ingress or HTTPRoute says of itself: has a controller taken it up? Pure functions of their manifests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from finetune_operator import kinds
from finetune_operator.kinds import Kind
from finetune_operator.observed import Exposure

Object = Mapping[str, Any]


def read(kind: Kind, child: Object | None) -> Exposure:
    """The verdict of its controller, as a condition."""
    if child is None or "deletionTimestamp" in child["metadata"]:
        return Exposure(there=child is not None)
    return _ingress(child) if kind is kinds.INGRESS else _http_route(child)


def _ingress(child: Object) -> Exposure:
    name, found = child["metadata"]["name"], (child.get("status", {}).get("loadBalancer") or {}).get("ingress") or ()
    addresses = ", ".join(str(a.get("ip") or a.get("hostname")) for a in found)
    if addresses:
        return Exposure(True, "True", "Addressed", f"Ingress {name} is at {addresses}")
    class_name = child["spec"].get("ingressClassName")
    text = f"Ingress {name} is made, and no controller has given it an address (some never do): is there one of class {class_name}?"
    return Exposure(True, "Unknown", "NoAddress", text)


def _http_route(child: Object) -> Exposure:
    """What every Gateway that is named says: the first that refuses, else the first that has not answered."""
    meta = child["metadata"]
    silent = []
    for parent in child["spec"]["parentRefs"]:
        said = list(_said(child, parent))
        refused = next((c for c in said if c["status"] == "False"), None)
        if refused:
            text = f"Gateway {_named(parent)} does not take HTTPRoute {meta['name']}: {refused.get('message', '')}"
            return Exposure(True, "False", str(refused["reason"]), text)
        if not any(c["type"] == "Accepted" and c["status"] == "True" for c in said):
            silent.append(_named(parent))
    if silent:
        text = f"HTTPRoute {meta['name']} is made, and nobody has answered for Gateway {', '.join(silent)}: is there one of that name?"
        return Exposure(True, "Unknown", "NoGateway", text)
    return Exposure(True, "True", "Accepted", f"HTTPRoute {meta['name']} is taken by {', '.join(map(_named, child['spec']['parentRefs']))}")


def _said(child: Object, parent: Object) -> Iterator[Object]:
    """Conditions by which a Gateway takes or refuses what the route is now."""
    for entry in child.get("status", {}).get("parents") or ():
        ref = entry["parentRef"]
        same = all(ref.get(key) == parent.get(key) for key in ("name", "sectionName"))
        if same and _namespace(child, ref) == _namespace(child, parent):
            for condition in entry.get("conditions") or ():
                current = condition.get("observedGeneration", 0) >= child["metadata"].get("generation", 0)
                if current and condition["type"] in ("Accepted", "ResolvedRefs"):
                    yield condition


def _namespace(child: Object, ref: Object) -> str:
    return str(ref.get("namespace") or child["metadata"]["namespace"])


def _named(parent: Object) -> str:
    return "/".join(str(parent[key]) for key in ("namespace", "name", "sectionName") if parent.get(key))
