"""The key that signs tokens to the routers: made once, kept in a Secret of the operator's own namespace."""

from __future__ import annotations

import base64

from finetune_operator import names
from finetune_operator.cluster import Cluster
from finetune_operator.errors import AlreadyExists
from finetune_operator.kinds import SECRET
from finetune_operator.tokens import generate_key

SECRET_NAME = "finetune-router-key"  # noqa: S105
FIELD = "key.pem"


async def key(cluster: Cluster, namespace: str) -> str:
    """The PEM; made and stored when there is none yet."""
    found = await cluster.get(SECRET, namespace, SECRET_NAME)
    if found is None:
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": SECRET_NAME, "namespace": namespace, "labels": {names.MANAGED_BY: names.FIELD_MANAGER}},
            "data": {FIELD: base64.b64encode(generate_key().encode()).decode()},
        }
        try:
            found = await cluster.create(SECRET, body)
        except AlreadyExists:
            found = await cluster.get(SECRET, namespace, SECRET_NAME) or body
    return base64.b64decode(found["data"][FIELD]).decode()
