"""Log-probabilities of an answer's tokens, and what single tokens spell.

Invariant: the tokens told are those whose text begins before the answer's end: of a stop string none but one that spells the end
of the answer too.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

IMPOSSIBLE = -9999.0  # OpenAI's figure where the probability is 0
_BYTE_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
# Vocabularies of bytes write the visible ones as they are, and the others in their order from the 256th character on.
_VISIBLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_HIDDEN = (byte for byte in range(256) if byte not in _VISIBLE)
BYTE_OF = {**{chr(byte): byte for byte in _VISIBLE}, **{chr(256 + index): byte for index, byte in enumerate(_HIDDEN)}}


@dataclass(frozen=True)
class Spelled:
    """A token's text, or its bytes as `\\xe2\\x82` where they are no whole characters; bytes None: not known."""

    text: str
    bytes: tuple[int, ...] | None


@dataclass(frozen=True)
class TokenLogprob:
    """A token of an answer. `offset` counts the answer's characters before it; `others` are the most likely tokens in its place,
    itself perhaps among them, each with its log-probability."""

    spelled: Spelled
    logprob: float
    offset: int
    others: tuple[tuple[Spelled, float], ...]


class Speller:
    """What single tokens of a tokenizer spell. Each is worked out once and kept: no more than the vocabulary has."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, Spelled] = {}

    def spell(self, token: int) -> Spelled:
        """What `token` spells within a text: some tokenizers take a space away from the beginning of one."""
        if token not in self._known:
            self._known[token] = self._spell(token)
        return self._known[token]

    @cached_property
    def _before(self) -> tuple[int, int]:
        """A token that may stand before any other, and how many characters it spells."""
        token = self._tokenizer.encode("a", add_special_tokens=False)[-1]
        return token, len(self._tokenizer.decode([token]))

    def _spell(self, token: int) -> Spelled:
        before, length = self._before
        text = self._tokenizer.decode([before, token])[length:]
        if "\ufffd" not in text:
            return Spelled(text, tuple(text.encode()))
        raw = _bytes(str(self._tokenizer.convert_ids_to_tokens(token)))
        if raw is None:
            return Spelled(text, None)
        try:
            return Spelled(raw.decode(), tuple(raw))
        except UnicodeDecodeError:
            return Spelled("".join(f"\\x{byte:02x}" for byte in raw), tuple(raw))


class Scores:
    """Tokens and their log-probabilities until their text is given out. They are the model's own: before temperature and top_p."""

    def __init__(self, speller: Speller, others: int) -> None:
        self._spell, self._others = speller.spell, others
        self._held: deque[TokenLogprob] = deque()

    def add(self, token: int, logits: torch.Tensor, decoded: int, text: str) -> None:
        """Keep `token`, chosen from `logits` (float32, vocabulary), which after `decoded` characters brought out `text`: its own, and
        before it what an unfinished character had held back."""
        logprobs = torch.log_softmax(logits, dim=-1)
        values, ids = logprobs.topk(min(self._others, len(logprobs)))
        others = tuple((self._spell(i), _finite(value)) for i, value in zip(ids.tolist(), values.tolist(), strict=True))
        spelled = self._spell(token)
        offset = decoded + (len(text) - len(spelled.text) if text.endswith(spelled.text) else 0)
        self._held.append(TokenLogprob(spelled, _finite(float(logprobs[token])), offset, others))

    def before(self, end: int | None) -> tuple[TokenLogprob, ...]:
        """Give out the tokens that begin before so many characters; None: all."""
        given = []
        while self._held and (end is None or self._held[0].offset < end):
            given.append(self._held.popleft())
        return tuple(given)


def _bytes(piece: str) -> bytes | None:
    """The bytes of a vocabulary's entry, of the two ways to write single ones; None: neither."""
    if found := _BYTE_FALLBACK.fullmatch(piece):
        return bytes([int(found[1], 16)])
    return bytes(BYTE_OF[character] for character in piece) if all(character in BYTE_OF for character in piece) else None


def _finite(logprob: float) -> float:
    return max(logprob, IMPOSSIBLE)
