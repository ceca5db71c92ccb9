"""Requests per user, counted exactly: the API server's audit log has each one (level Metadata, blocking, so that none is lost)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from devcluster import pki

WRITES: Final = frozenset({"create", "update", "patch", "delete", "deletecollection"})
READS: Final = frozenset({"get", "list"})
LEASES: Final = "leases"  # renewed for ever by whoever leads: counted apart
CLUSTER: Final = ("system:serviceaccount:kube-system:", "system:kube-", "system:apiserver")
POLICY: Final = json.dumps(
    {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "None", "users": [pki.CLIENTS["admin"].rpartition("CN=")[2]]},  # the load generator
            {"level": "None", "nonResourceURLs": ["/healthz*", "/readyz*", "/livez*", "/version", "/metrics", "/openapi*", "/api*"]},
            {"level": "Metadata", "omitManagedFields": True},
        ],
    }
)


class Tally:
    """Requests by user and by what was asked: `create jobs`, `patch finetunes/status`, `list pods`, `list pods (next page)`."""

    def __init__(self) -> None:
        self.calls: dict[str, Counter[str]] = {}
        self.refused: dict[str, Counter[str]] = {}

    def add(self, entry: Mapping[str, Any]) -> bool:
        """Count a line of the log, a watch when it begins and any other request when it ends. Was it a write, other than of a Lease?"""
        verb, user = entry["verb"], entry["user"]["username"]
        if (verb == "watch") != (entry["stage"] == "ResponseStarted"):
            return False
        what = _what(entry)
        self.calls.setdefault(user, Counter())[f"{verb} {what}"] += 1
        code = entry.get("responseStatus", {}).get("code", 0)
        if code >= 400:
            self.refused.setdefault(user, Counter())[f"{code} {verb} {what}"] += 1
        return verb in WRITES and what != LEASES

    def summary(self) -> dict[str, dict[str, Any]]:
        """By user: reads, watches begun, writes (of them status, events), Lease requests, refusals, and all by what was asked."""
        return {user: _summary(calls, self.refused.get(user, Counter())) for user, calls in self.calls.items()}


def _what(entry: Mapping[str, Any]) -> str:
    ref = entry.get("objectRef") or {}
    subresource = f"/{ref['subresource']}" if ref.get("subresource") else ""
    return str(ref.get("resource", "?")) + subresource + (" (next page)" if "continue=" in entry["requestURI"] else "")


def _summary(calls: Counter[str], refused: Counter[str]) -> dict[str, Any]:
    asked = [(verb, what, count) for key, count in calls.items() for verb, _, what in [key.partition(" ")]]
    writes = [(what, count) for verb, what, count in asked if verb in WRITES and what != LEASES]
    return {
        "reads": sum(count for verb, what, count in asked if verb in READS and what != LEASES),
        "watches": sum(count for verb, _, count in asked if verb == "watch"),
        "writes": sum(count for _, count in writes),
        "status_writes": sum(count for what, count in writes if what.endswith("/status")),
        "events": sum(count for what, count in writes if what == "events"),
        "leases": sum(count for _, what, count in asked if what == LEASES),
        "refused": dict(refused),
        "calls": dict(calls.most_common()),
    }


def of_the_cluster(user: str) -> bool:
    """Is it one of the control plane's own controllers?"""
    return user.startswith(CLUSTER)


class AuditLog:
    """The log, read from any position on."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def position(self) -> int:
        return self._path.stat().st_size

    def entries(self, begin: int) -> tuple[list[dict[str, Any]], int]:
        """The whole lines from a position on, and the position after the last of them."""
        with self._path.open("rb") as file:
            file.seek(begin)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        return [json.loads(line) for line in whole.splitlines()], begin + len(whole)

    def tally(self, begin: int) -> Tally:
        return tally(self.entries(begin)[0])


def tally(entries: Iterable[Mapping[str, Any]]) -> Tally:
    made = Tally()
    for entry in entries:
        made.add(entry)
    return made
