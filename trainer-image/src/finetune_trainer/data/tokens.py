"""What rows became as tokens, by their content: what a revision has encoded and proven, the next one does not encode again.

Invariant: a folder of tokens is of one tokenizer, objective and code (its key); what it gives for a content is what they would give.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from finetune_trainer import layout
from finetune_trainer.data import arrays, preference
from finetune_trainer.data.formats import Row
from finetune_trainer.data.templates import Encoded

SPLIT, CONTENTS = "all", "contents.npy"
_CONTENT = np.dtype([("high", "u8"), ("low", "u8")])
UNKNOWN = -1
_NO_ROW = Row("", 0, (), "")
Contents = npt.NDArray[np.void]


@contextmanager
def kept(folder: Path, key: str, *, pairs: bool) -> Iterator[Tokens]:
    """The tokens in `folder` if they are of this key, else none. Where rows are added, those that were found or added take their
    place after the block. The caller has the folder locked."""
    with ExitStack() as stack:
        tokens = Tokens(folder, key, stack, pairs=pairs)
        yield tokens
        tokens.finish()


class Tokens:
    """Tokens of known rows, and those of new ones."""

    def __init__(self, folder: Path, key: str, stack: ExitStack, *, pairs: bool) -> None:
        self._folder, self._key, self._stack, self._kind = folder, key, stack, preference if pairs else arrays
        self._found: list[int] = []
        self._added: list[Contents] = []
        self._writer: arrays.Writer | None = None
        self._known = np.empty(0, _CONTENT)
        self._encoded: Callable[[Row, int], Encoded] = _none
        if layout.is_of(folder, key):
            self._known = np.load(folder / CONTENTS)
            self._order = np.argsort(self._known["high"], kind="stable")
            self._sorted = self._known["high"][self._order]
            self._encoded = self._kind.load(folder, SPLIT).encoded
        else:
            layout.remove(folder)

    def find(self, rows: Sequence[Row], contents: Sequence[bytes]) -> list[Encoded | None]:
        """The tokens of each row whose content is known."""
        places = self._places(_digests(contents))
        self._found += [place for place in places if place != UNKNOWN]
        return [None if place == UNKNOWN else self._encoded(row, place) for row, place in zip(rows, places, strict=True)]

    def add(self, items: Sequence[Encoded], contents: Sequence[bytes]) -> None:
        """Keep the tokens of rows that were not known."""
        if not items:
            return
        if self._writer is None:
            self._work = self._stack.enter_context(layout.transaction(self._folder, has_lock=True))
            self._writer = self._stack.enter_context(self._kind.Writer(self._work.folder, SPLIT))
        for item in items:
            self._writer.add(item)
        self._added.append(_digests(contents))

    def finish(self) -> None:
        """Let the rows that were found and those that were added be all that is known next time."""
        if self._writer is None:
            return
        for place in self._found:
            self._writer.add(self._encoded(_NO_ROW, place))
        self._encoded = _none  # its files are closed: this folder is removed, and on NFS none is that has an open file
        np.save(self._work.folder / CONTENTS, np.concatenate([*self._added, self._known[self._found]]))
        self._work.facts["key"] = self._key

    def _places(self, wanted: Contents) -> list[int]:
        if not len(self._known):
            return [UNKNOWN] * len(wanted)
        places = self._order[np.searchsorted(self._sorted, wanted["high"]) % len(self._order)]
        found: list[int] = np.where(self._known[places] == wanted, places, UNKNOWN).tolist()
        return found


def _none(_row: Row, place: int) -> Encoded:
    raise KeyError(place)


def _digests(contents: Sequence[bytes]) -> Contents:
    return np.frombuffer(b"".join(hashlib.blake2b(content, digest_size=16).digest() for content in contents), _CONTENT)
