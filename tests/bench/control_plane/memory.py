"""What the operator's caches take for a FineTune with its children: exactly, by tracemalloc, without what else a process takes."""

from __future__ import annotations

import gc
import json
import tracemalloc
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final

from finetune_operator import projection
from finetune_operator.cache import Cache
from finetune_operator.kinds import Kind

from tests.bench.control_plane.copies import numbered, renamed

COUNT: Final = 50  # copies, so that what is there once is next to nothing


def cache_kib(objects: Mapping[Kind, Sequence[Mapping[str, Any]]], model: str) -> float:
    """KiB of each of some FineTunes like this one, listed a page of each kind; `model` is its name."""
    uids = [obj["metadata"]["uid"] for found in objects.values() for obj in found]
    words = [{model: name, **{uid: str(uuid.uuid4()) for uid in uids}} for name in numbered(model.rstrip("0123456789"), COUNT)]
    pages = {
        kind: json.dumps({"metadata": {}, "items": [renamed(obj, each) for each in words for obj in found]}).encode()
        for kind, found in objects.items()
    }
    cache = Cache()
    gc.collect()
    tracemalloc.start(1)
    try:
        for kind, page in pages.items():
            cache.fill(kind, projection.read_page(kind, page)[1])
        gc.collect()
        return tracemalloc.get_traced_memory()[0] / 1024 / COUNT
    finally:
        tracemalloc.stop()
