"""What any object of the API server says."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any


def time(value: str | None) -> datetime | None:
    """An RFC 3339 timestamp of the API server."""
    return datetime.fromisoformat(value.replace("Z", "+00:00")) if value else None


def condition(obj: Mapping[str, Any], type_: str) -> Mapping[str, Any] | None:
    """The object's condition of that type when it is True."""
    for entry in obj.get("status", {}).get("conditions") or ():
        if entry.get("type") == type_ and entry.get("status") == "True":
            return dict(entry)
    return None
