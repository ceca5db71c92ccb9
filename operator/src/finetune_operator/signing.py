"""The key that signs tokens to the routers: made once, kept in a Secret of the operator's own namespace."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from finetune_operator import names
from finetune_operator.cluster import Cluster
from finetune_operator.errors import AlreadyExists, Unavailable
from finetune_operator.kinds import SECRET
from finetune_operator.tokens import generate_key

SECRET_NAME = "finetune-router-key"  # noqa: S105
FIELD = "key.pem"


async def key(cluster: Cluster, namespace: str) -> str:
    """The PEM; made and stored when there is none yet."""
    secret = await cluster.get(SECRET, namespace, SECRET_NAME) or await _made(cluster, namespace)
    return base64.b64decode(secret["data"][FIELD]).decode()


async def _made(cluster: Cluster, namespace: str) -> Mapping[str, Any]:
    body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": SECRET_NAME, "namespace": namespace, "labels": {names.MANAGED_BY: names.FIELD_MANAGER}},
        "data": {FIELD: base64.b64encode(generate_key().encode()).decode()},
    }
    try:
        return await cluster.create(SECRET, body)
    except AlreadyExists:  # another process was first: its key counts
        found = await cluster.get(SECRET, namespace, SECRET_NAME)
        if found is None:
            raise Unavailable(f"Secret {namespace}/{SECRET_NAME} went away while it was read") from None
        return found
