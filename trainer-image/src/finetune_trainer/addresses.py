"""Addresses as they may be told and kept: without what opens them.

A signed link carries its signature in the query, others a user and password before the host. Only the request uses them:
logs, records, reports, manifests and termination messages have what these functions give.
"""

from __future__ import annotations

import hashlib
import re
from urllib.parse import parse_qsl, urlencode

_WEB = ("http", "https")
_IN_TEXT = re.compile(r"https?://[^\s'\"<>]+", re.IGNORECASE)
_SIGNATURE = re.compile(
    r"x-(amz|goog)-.*|signature|policy|expires|key-pair-id|awsaccesskeyid|googleaccessid|(access_)?token"
    r"|sig|s[eprstv]|spr|srt|ss|sip|sk(oid|tid|[tesv])",  # Azure's
    re.IGNORECASE,
)


def shown(address: str) -> str:
    """A web address without user, query and fragment; any other as it is."""
    scheme, _, rest = address.partition("://")
    if scheme.lower() not in _WEB:
        return address
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def shown_in(text: str) -> str:
    """`text` with every web address in it as it is shown."""
    return _IN_TEXT.sub(lambda found: shown(found[0]), text)


def identity(address: str) -> str:
    """What tells a file from others, the same however it is signed: its address as it is shown, and a digest of its query but the
    signature."""
    query = address.partition("#")[0].partition("?")[2]
    if shown(address) == address or not query:
        return shown(address)
    chosen = [(name, value) for name, value in parse_qsl(query, keep_blank_values=True) if not _SIGNATURE.fullmatch(name)]
    return f"{shown(address)}#{hashlib.sha256(urlencode(chosen).encode()).hexdigest()[:16]}" if chosen else shown(address)
