"""Pairs of answers to the same prompt, one preferred: conversations → tokens.

On disk a pair is one row of the token arrays, the chosen conversation before the rejected one, and `<split>.seams.npy` says where
the second begins. Only the last answer of each is supervised: what comes before is the same in both.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from finetune_trainer.data import arrays
from finetune_trainer.data.arrays import TokenArrays
from finetune_trainer.data.formats import Row, RowError
from finetune_trainer.data.templates import ChatEncoder, Encoded

Answer = tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class EncodedPair(Encoded):
    """Both conversations of a pair, one after the other; the rejected one begins at `seam`."""

    seam: int = 0

    @property
    def longest(self) -> int:
        """Tokens of the longer conversation."""
        return max(self.seam, len(self.ids) - self.seam)

    def conversations(self) -> tuple[Encoded, ...]:
        """The chosen and the rejected conversation."""
        rejected = replace(self.row, messages=self.row.rejected)
        return (
            Encoded(self.row, self.ids[: self.seam], self.mask[: self.seam]),
            Encoded(rejected, self.ids[self.seam :], self.mask[self.seam :]),
        )

    def shortened(self, limit: int) -> EncodedPair:
        """Both conversations cut after `limit` tokens."""
        chosen, rejected = (item.shortened(limit) for item in self.conversations())
        return joined(self.row, chosen, rejected)

    def teaches(self) -> bool:
        """Whether something is supervised in both."""
        return all(item.teaches() for item in self.conversations())


@dataclass(frozen=True)
class PairEncoder:
    """Encodes both conversations of each row."""

    encoder: ChatEncoder

    def encode_all(self, rows: Sequence[Row]) -> list[Encoded | RowError]:
        """Tokens and mask of each pair, or why there are none."""
        chosen = self.encoder.encode_all(rows, last=True)
        rejected = self.encoder.encode_all([replace(row, messages=row.rejected) for row in rows], last=True)
        return [_joined_or_refused(*three) for three in zip(rows, chosen, rejected, strict=True)]


@dataclass(frozen=True)
class PairArrays:
    """The pairs of a split; pair r is row r of `rows`, cut at `seams[r]` tokens."""

    rows: TokenArrays
    seams: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each pair, both conversations together."""
        return self.rows.lengths

    @property
    def widths(self) -> npt.NDArray[np.int64]:
        """Tokens that each pair takes when both are as long as the longer one."""
        return np.asarray(2 * np.maximum(self.seams, self.lengths - self.seams), dtype=np.int64)

    def pair(self, index: int) -> tuple[Answer, Answer]:
        """(ids, supervised) of the chosen and of the rejected conversation."""
        (ids, mask), seam = self.rows.row(index), int(self.seams[index])
        return (ids[:seam], mask[:seam]), (ids[seam:], mask[seam:])

    def encoded(self, row: Row, index: int) -> EncodedPair:
        """One pair as it was added, of a `row`."""
        both = self.rows.encoded(row, index)
        return EncodedPair(row, both.ids, both.mask, int(self.seams[index]))


def joined(row: Row, chosen: Encoded, rejected: Encoded) -> EncodedPair:
    """One row of two encoded conversations."""
    return EncodedPair(row, chosen.ids + rejected.ids, chosen.mask + rejected.mask, len(chosen.ids))


class Writer(arrays.Writer):
    """Writes the token arrays of pairs and, at the end of its block, `<split>.seams.npy`."""

    def __init__(self, folder: Path, split: str) -> None:
        super().__init__(folder, split)
        self._path = folder / f"{split}.seams.npy"
        self._seams = array("q")

    def __exit__(self, *failure: object) -> None:
        super().__exit__(*failure)
        np.save(self._path, np.array(self._seams, dtype=np.int64))

    def add(self, item: Encoded) -> None:
        """Append an EncodedPair."""
        assert isinstance(item, EncodedPair)
        super().add(item)
        self._seams.append(item.seam)


def _joined_or_refused(row: Row, chosen: Encoded | RowError, rejected: Encoded | RowError) -> Encoded | RowError:
    if isinstance(chosen, RowError):
        return chosen
    return rejected if isinstance(rejected, RowError) else joined(row, chosen, rejected)


def load(folder: Path, split: str) -> PairArrays:
    """Memory-map a saved split."""
    return PairArrays(arrays.load(folder, split), np.load(folder / f"{split}.seams.npy", mmap_mode="r"))
