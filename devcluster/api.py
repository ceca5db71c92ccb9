"""The smallest client of the API server: GET with the administrator's certificate, for health checks without kubectl."""

import http.client
import json
import ssl
from pathlib import Path
from typing import Any


def get(host: str, port: int, pki: Path, path: str, *, seconds: float = 2.0) -> Any:
    """Decoded JSON (or text) of a 200 answer; None if the server does not answer or answers otherwise."""
    try:
        context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        context.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        connection = http.client.HTTPSConnection(host, port, timeout=seconds, context=context)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
    except (OSError, http.client.HTTPException):
        return None
    if answer.status != 200:
        return None
    return json.loads(body) if (answer.getheader("Content-Type") or "").startswith("application/json") else body.decode()


def items(listed: Any) -> list[dict[str, Any]] | None:
    """The objects of a list that was asked for; None if there was no answer."""
    return None if listed is None else listed["items"]


def condition(node: Any, kind: str) -> dict[str, str]:
    """A condition of an object by its type; {} if it has none."""
    found = (node or {}).get("status", {}).get("conditions", [])
    return next((entry for entry in found if entry["type"] == kind), {})
