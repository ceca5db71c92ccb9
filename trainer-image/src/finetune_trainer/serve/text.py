"""Tokens to text while they arrive.

Invariant: the pieces given out, joined, are the answer: a streamed answer equals one that is not, and a stop string
never shows, not even in part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

_UNFINISHED = "�"


class Decodes(Protocol):
    """What is needed of a tokenizer."""

    def decode(self, token_ids: list[int], skip_special_tokens: bool = ...) -> str:
        """Text of `token_ids`."""
        ...


class Detokenizer:
    """Text of a growing list of tokens, in pieces that end at whole characters."""

    def __init__(self, tokenizer: Decodes) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0  # decoding starts here: far enough back for spaces and joined characters to come out right
        self._given = 0  # text of ids before this has been given out

    def add(self, token: int) -> str:
        """The text that `token` completes, or nothing while a character is unfinished."""
        self._ids.append(token)
        piece = self._pending()
        if not piece or piece.endswith(_UNFINISHED):
            return ""
        self._start, self._given = self._given, len(self._ids)
        return piece

    def rest(self) -> str:
        """What is left when no token follows."""
        piece = self._pending()
        self._start = self._given = len(self._ids)
        return piece

    def _pending(self) -> str:
        before = self._decode(self._ids[self._start : self._given])
        return self._decode(self._ids[self._start :])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True) if ids else ""


class StopStrings:
    """Passes text on until one of `stops` appears; holds back an end that could become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.hit = False

    def add(self, piece: str) -> str:
        """The text that is certain now. After a hit: nothing."""
        if self.hit:
            return ""
        text = self._held + piece
        found = min((at for stop in self._stops if (at := text.find(stop)) >= 0), default=None)
        if found is not None:
            self.hit, self._held = True, ""
            return text[:found]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def rest(self) -> str:
        """What was held back when no text follows."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, not all of it."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
