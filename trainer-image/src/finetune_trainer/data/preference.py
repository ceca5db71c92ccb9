"""Pairs of answers to the same prompt, one preferred: raw rows → conversations → tokens.

On disk a pair is one row of the token arrays, the chosen conversation before the rejected one, and `<split>.seams.npy` says where
the second begins. Only the last answer of each is supervised: what comes before is the same in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune_trainer.data import arrays
from finetune_trainer.data.arrays import TokenArrays
from finetune_trainer.data.formats import Message, Rejected, Row, RowError, check, content_digest, to_messages
from finetune_trainer.data.sources import RawRow
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
    """Encodes both conversations of a row. Raises RowError for what the template refuses."""

    encoder: ChatEncoder

    def encode(self, row: Row) -> EncodedPair:
        """Tokens and mask of a pair."""
        return joined(row, self.encoder.encode_last(row), self.encoder.encode_last(replace(row, messages=row.rejected)))


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


def joined(row: Row, chosen: Encoded, rejected: Encoded) -> EncodedPair:
    """One row of two encoded conversations."""
    return EncodedPair(row, chosen.ids + rejected.ids, chosen.mask + rejected.mask, len(chosen.ids))


def save(folder: Path, split: str, pairs: Sequence[Any]) -> None:
    """Write a split of EncodedPair."""
    arrays.save(folder, split, pairs)
    np.save(folder / f"{split}.seams.npy", np.array([pair.seam for pair in pairs], dtype=np.int64))


def load(folder: Path, split: str) -> PairArrays:
    """Memory-map a saved split."""
    return PairArrays(arrays.load(folder, split), np.load(folder / f"{split}.seams.npy", mmap_mode="r"))


def convert(rows: Iterable[RawRow]) -> tuple[list[Row], list[Rejected]]:
    """Pairs of the good rows and reasons for the others. What identifies a row is its prompt and its chosen answer."""
    good: list[Row] = []
    bad: list[Rejected] = []
    for raw in rows:
        try:
            chosen, rejected = to_pair(raw)
            good.append(Row(raw.source, raw.row, chosen, content_digest(chosen), rejected))
        except RowError as error:
            bad.append(Rejected(raw.source, raw.row, str(error)))
    return good, bad


def to_pair(raw: RawRow) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """The conversations with the chosen and with the rejected answer. Raises RowError."""
    chosen, rejected = (_conversation(raw, key) for key in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        raise RowError("chosen and rejected answer different conversations: only their last turns may differ")
    if chosen[-1]["content"].strip() == rejected[-1]["content"].strip():
        raise RowError("chosen and rejected are the same answer")
    return chosen, rejected


def _conversation(raw: RawRow, key: str) -> tuple[Message, ...]:
    """The field `prompt` (text or turns) with the answer in field `key`, or without a prompt all of the conversation that is there."""
    value = raw.value
    if isinstance(value, dict) and key not in value:
        raise RowError(f"field {key} is missing")
    whole = isinstance(value, dict) and value.get("prompt") is None
    spelt = {"messages": value[key]} if whole else _with_completion(value, key)  # type: ignore[index]
    try:
        return tuple(check(to_messages(replace(raw, value=spelt), "Messages" if whole else "PromptCompletion")))
    except RowError as error:
        raise RowError(raw.error or f"{key}: {error}") from error


def _with_completion(value: object, key: str) -> object:
    """A raw row as of format PromptCompletion; a prompt of turns takes an answer of turns, and one of text an answer of text."""
    if not isinstance(value, dict):
        return value
    answer = value[key]
    if isinstance(value["prompt"], list) and isinstance(answer, str):
        answer = [{"role": "assistant", "content": answer}]
    return {**value, "completion": answer}
