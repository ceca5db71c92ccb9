"""Who a request is of: the configuration that reads a user's identity from a request's body.

Headers need none: routes match them. For body fields a Lua filter (identity.lua) writes what it finds into a header of the
routers' own, whose route comes first: it is there only if no source before that field named anybody. Clients cannot set it,
servers do not see it. What the filter looks for is part of the route configuration, so it changes together with the routes.
"""

from __future__ import annotations

from typing import Any, Final

from finetune_operator.build.envoy import TYPE, script
from finetune_operator.traffic import Structure

USER_HEADER: Final = "x-finetune-user"
BODY_BYTES: Final = 1024 * 1024  # of a body that is read for an identity: it is held until it is complete
FILTER: Final = "finetune.identity"
SCRIPT: Final = script("identity.lua")


def headers(structure: Structure) -> tuple[str, ...]:
    """The headers that may name the user, in the order in which routes ask for them."""
    own = (USER_HEADER,) if _reads_bodies(structure) else ()
    return (*own, *(source.header for source in structure.identity if source.header))


def context(structure: Structure) -> dict[str, Any] | None:
    """What the filter is to look for; None, and nothing is done, unless a body field is among the sources."""
    if not _reads_bodies(structure):
        return None
    sources = [{"header": s.header} if s.header else {"bodyField": s.body_field} for s in structure.identity]
    return {"sources": sources, "bytes": BODY_BYTES, "to": USER_HEADER}


def without_forgery() -> list[dict[str, Any]]:
    """The connection manager's early extensions: a client's own USER_HEADER is gone before anything looks at it."""
    removal = {
        "@type": f"{TYPE}.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        "mutations": [{"remove": USER_HEADER}],
    }
    return [{"name": "envoy.http.early_header_mutation.header_mutation", "typed_config": removal}]


def _reads_bodies(structure: Structure) -> bool:
    return any(source.body_field for source in structure.identity)
