"""Tokenised splits on disk: flat arrays that are memory-mapped, with the offset of each row."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune_trainer.data.formats import Row
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

    def encoded(self, row: Row, index: int) -> Encoded:
        """One row as it was added, of a conversation `row`."""
        ids, mask = self.row(index)
        return Encoded(row, tuple(ids.tolist()), tuple(mask.tolist()))


class Writer:
    """Writes `<split>.tokens.npy`, `<split>.mask.npy` and, at the end of its block, `<split>.offsets.npy`, row by row.

    Memory holds the lengths alone."""

    def __init__(self, folder: Path, split: str) -> None:
        self._tokens = _Flat(folder / f"{split}.tokens.npy", np.dtype(np.uint32))
        self._mask = _Flat(folder / f"{split}.mask.npy", np.dtype(np.bool_))
        self._offsets = folder / f"{split}.offsets.npy"
        self.lengths = array("q")
        self.supervised = 0

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._tokens.close()
        self._mask.close()
        np.save(self._offsets, np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)]).astype(np.int64))

    def add(self, item: Encoded) -> None:
        """Append a row."""
        self._tokens.extend(item.ids)
        self._mask.extend(item.mask)
        self.lengths.append(len(item.ids))
        self.supervised += sum(item.mask)


class _Flat:
    """A one-dimensional .npy file that grows. Its header keeps room for any length (numpy does that), and is written again at the end."""

    def __init__(self, path: Path, kind: np.dtype[Any]) -> None:
        self._stream = path.open("w+b")
        self._kind = kind
        self._count = 0
        self._header()

    def extend(self, values: Sequence[int]) -> None:
        self._stream.write(np.array(values, dtype=self._kind).tobytes())
        self._count += len(values)

    def close(self) -> None:
        end = self._stream.tell()
        self._stream.seek(0)
        self._header()
        assert self._stream.tell() + self._count * self._kind.itemsize == end
        self._stream.close()

    def _header(self) -> None:
        described = {"descr": np.lib.format.dtype_to_descr(self._kind), "fortran_order": False, "shape": (self._count,)}
        np.lib.format.write_array_header_1_0(self._stream, described)


def load(folder: Path, split: str) -> TokenArrays:
    """Memory-map a saved split."""
    return TokenArrays(*(np.load(folder / f"{split}.{name}.npy", mmap_mode="r") for name in ("tokens", "mask", "offsets")))
