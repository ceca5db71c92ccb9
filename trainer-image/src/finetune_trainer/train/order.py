"""The order in which rows were trained on, as one digest: what was passed through the model, not what was planned.

Each rank adds up numbers of the rows that it passed, the step's sum over all ranks joins the chain. So the digest is the same
however many ranks share a step and in whatever passes, and another one as soon as any step had other rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

PARTS = 3
LIMIT = 1 << 16


def share(rows: Iterable[int]) -> list[float]:
    """What a rank adds to the step's sum for the rows that it passed: PARTS whole numbers below LIMIT."""
    sums = [0] * PARTS
    for row in rows:
        mark = hashlib.blake2b(row.to_bytes(8, "little"), digest_size=2 * PARTS).digest()
        sums = [total + int.from_bytes(mark[2 * part : 2 * part + 2], "little") for part, total in enumerate(sums)]
    return [float(total % LIMIT) for total in sums]


def after(before: str, sums: Sequence[float]) -> str:
    """The chain's digest (32 hex digits) once a step with these sums of all ranks has followed `before` ('' at the start)."""
    step = ",".join(str(int(total) % LIMIT) for total in sums)
    return hashlib.blake2b(f"{before}/{step}".encode(), digest_size=16).hexdigest()
