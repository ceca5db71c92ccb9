"""Near-duplicates by MinHash: rows whose sets of word trigrams overlap by a given share.

Words are compared in lower case without punctuation, a Han, Kana or Hangul character counts as a word, and system turns
are left out. Trigrams that more than a tenth of the rows share (instructions, schemas, boilerplate) say what the data
are about, not what a row is: they do not count. Signatures come from rensa; candidates agree in one band of their
signature (locality-sensitive hashing), and count as near-duplicates if their signatures agree in the wanted share
(estimate of the Jaccard index, standard error 0.035 at 0.8).
Invariant: what is found depends on the rows' words and their order alone.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from rensa import RMinHash  # type: ignore[import-untyped]

from finetune_trainer.data.batches import batches
from finetune_trainer.data.formats import Row

HASHES, BAND = 128, 4  # 32 bands: of pairs that are 80 % alike one in 6e8 is missed, of pairs 60 % alike 99 % are looked at
TRIGRAM = 3
BOILERPLATE_SHARE, BOILERPLATE_ROWS = 0.1, 20
CHUNK, CHUNK_CHARACTERS = 4096, 1 << 22
SEED = 17
_WIDE = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORDS = re.compile(f"[{_WIDE}]|[^\\W{_WIDE}]+")
_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)
Hashes = npt.NDArray[np.uint64]
Signatures = npt.NDArray[np.uint32]


def words(row: Row) -> list[str]:
    """What of a row is compared."""
    return _WORDS.findall(" ".join(message["content"] for message in row.messages if message["role"] != "system").lower())


def _characters(row: Row) -> int:
    return sum(len(message["content"]) for message in row.messages)


def trigrams(texts: Iterable[list[str]]) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """Hashes of the trigrams of every text, one after the other, and where each text's begin (n + 1 offsets).

    A text of fewer words is one trigram with empty places."""
    padded = [text + [""] * (TRIGRAM - len(text)) for text in texts]
    lengths = np.array([len(text) for text in padded], dtype=np.int64)
    flat = np.fromiter((zlib.crc32(word.encode("utf-8", "replace")) for text in padded for word in text), np.uint64, int(lengths.sum()))
    ends = np.cumsum(lengths)
    count = max(0, len(flat) - TRIGRAM + 1)
    hashes = np.zeros(count, np.uint64)
    for place, factor in enumerate(_FACTORS):
        hashes = (hashes ^ (flat[place : place + count] + np.uint64(1))) * factor
        hashes ^= hashes >> np.uint64(29)
    within = np.ones(count, np.bool_)
    for end in (ends[:-1] - 1, ends[:-1] - 2):  # these would reach over the end of their text
        within[end[end < count]] = False
    return hashes[within], np.concatenate([[0], np.cumsum(lengths - TRIGRAM + 1)])


def boilerplate(rows: Iterable[Row]) -> Hashes:
    """Sorted hashes of the trigrams that more than a tenth of `rows` share, and at least twenty."""
    seen: list[Hashes] = []
    count = 0
    for chunk in batches(rows, CHUNK, _characters, CHUNK_CHARACTERS):
        hashes, offsets = trigrams(map(words, chunk))
        seen += [np.unique(hashes[start:end]) for start, end in pairwise(offsets)]
        count += len(chunk)
    if not seen:
        return np.empty(0, np.uint64)
    found, counts = np.unique(np.concatenate(seen), return_counts=True)
    return found[counts > max(BOILERPLATE_SHARE * count, BOILERPLATE_ROWS)]


def signatures(rows: Iterable[Row], common: Hashes) -> Iterator[tuple[Signatures, npt.NDArray[np.bool_]]]:
    """Chunks of (rows × 128 MinHashes, which rows have any trigram that is not `common`)."""
    for chunk in batches(rows, CHUNK, _characters, CHUNK_CHARACTERS):
        hashes, offsets = trigrams(map(words, chunk))
        own = ~np.isin(hashes, common, assume_unique=False)
        kept = np.concatenate([[0], np.cumsum(own)])[offsets]
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes[own], kept.astype(np.uint64), HASHES, SEED)
        yield np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(chunk), HASHES), np.diff(kept) > 0


def duplicates(matrix: Signatures, judged: npt.NDArray[np.bool_], percent: float) -> dict[int, int]:
    """Row → an earlier row that it is a near-duplicate of, among the `judged`."""
    earlier: dict[int, int] = {}
    rows = np.flatnonzero(judged)
    for first in range(0, HASHES, BAND):
        for later, before in _pairs(matrix, rows, first):
            same = np.mean(matrix[later] == matrix[before], axis=1) * 100 >= percent
            for one, other in zip(later[same].tolist(), before[same].tolist(), strict=True):
                earlier[one] = min(other, earlier.get(one, other))
    return earlier


def _pairs(matrix: Signatures, rows: npt.NDArray[np.int64], first: int) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Candidates of one band, in chunks: each row of a bucket beside the bucket's first, and beside the one before it."""
    band = np.ascontiguousarray(matrix[rows, first : first + BAND]).view(np.uint64).reshape(len(rows), BAND // 2)
    keys = band[:, 0] * _FACTORS[0] ^ band[:, 1] * _FACTORS[1]
    order = np.argsort(keys, kind="stable")
    fresh = np.concatenate([[True], np.diff(keys[order]) != 0]) if len(order) else np.empty(0, np.bool_)
    heads = order[np.maximum.accumulate(np.where(fresh, np.arange(len(order)), 0))] if len(order) else order
    places = np.flatnonzero(~fresh)
    for part in np.array_split(places, max(1, -(-len(places) // (16 * CHUNK)))):
        yield rows[order[part]], rows[heads[part]]
        yield rows[order[part]], rows[order[part - 1]]


def find(rows: Iterable[Row], count: int, sample: Iterable[Row], percent: float) -> dict[int, int]:
    """Position in `rows` (there are `count`) → an earlier position whose row is alike in at least `percent` of their trigrams.

    `sample` are rows to learn the boilerplate from. Takes 513 bytes of memory a row."""
    matrix, judged = np.empty((count, HASHES), np.uint32), np.zeros(count, np.bool_)
    done = 0
    for part, own in signatures(rows, boilerplate(sample)):
        matrix[done : done + len(part)], judged[done : done + len(part)] = part, own
        done += len(part)
    return duplicates(matrix[:done], judged[:done], percent)
