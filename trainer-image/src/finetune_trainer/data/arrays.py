"""Tokenised splits on disk: flat arrays that are memory-mapped, with the offset of each row."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from finetune_trainer.data.templates import Encoded


@dataclass(frozen=True)
class TokenArrays:
    """Row r is `tokens[offsets[r]:offsets[r+1]]` (uint32), supervised where `mask` (bool) is set."""

    tokens: npt.NDArray[np.uint32]
    mask: npt.NDArray[np.bool_]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row."""
        return np.diff(self.offsets)

    @property
    def supervised(self) -> npt.NDArray[np.int64]:
        """Supervised tokens of each row."""
        sums = np.concatenate([[0], np.cumsum(self.mask, dtype=np.int64)])
        return np.asarray(np.diff(sums[self.offsets]), dtype=np.int64)

    def row(self, index: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
        """Ids and mask of one row."""
        start, end = self.offsets[index], self.offsets[index + 1]
        return self.tokens[start:end], self.mask[start:end]


def save(folder: Path, split: str, rows: Iterable[Encoded]) -> None:
    """Write `<split>.tokens.npy`, `<split>.mask.npy`, `<split>.offsets.npy`."""
    items = list(rows)
    np.save(folder / f"{split}.tokens.npy", np.array([t for item in items for t in item.ids], dtype=np.uint32))
    np.save(folder / f"{split}.mask.npy", np.array([m for item in items for m in item.mask], dtype=np.bool_))
    np.save(folder / f"{split}.offsets.npy", np.cumsum([0, *(len(item.ids) for item in items)], dtype=np.int64))


def load(folder: Path, split: str) -> TokenArrays:
    """Memory-map a saved split."""
    return TokenArrays(*(np.load(folder / f"{split}.{name}.npy", mmap_mode="r") for name in ("tokens", "mask", "offsets")))
