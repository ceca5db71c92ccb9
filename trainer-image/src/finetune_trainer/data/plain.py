"""Plain texts → tokens, all of which are to be learnt, and the end-of-sequence token after them. No chat template has a part in it.

What the tokenizer itself puts before a text (a begin-of-sequence token) is context. A text that brings the one or the other as text
has it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune_trainer.data.formats import Row
from finetune_trainer.data.templates import Encoded, packed
from finetune_trainer.exits import UserError


class TextEncoder:
    """Tokenises with one tokenizer. Raises UserError if that has no token to end a text."""

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.eos_token_id is None:
            raise UserError(
                "NoEndOfText",
                "the model's tokenizer has no end-of-sequence token (eos_token), and every plain text is learnt with its end",
                "Name an eos_token in the model's tokenizer_config.json, or use another model.",
            )
        self._tokenizer = tokenizer
        self._opening = opening(tokenizer)

    def encode_all(self, rows: Sequence[Row]) -> list[Encoded]:
        """Tokens and mask of each row; one call of the tokenizer for all of them."""
        texts = self._tokenizer([row.response for row in rows], add_special_tokens=False)["input_ids"] if rows else []
        return [self._encoded(row, list(ids)) for row, ids in zip(rows, texts, strict=True)]

    def unproven(self, items: Sequence[Encoded]) -> list[bool]:
        """Of each text, whether its mask is not to be believed: all but the opening must be supervised, and it must end with the end of
        text and decode to the text and nothing more but white space."""
        decoded = self._tokenizer.batch_decode([list(item.ids) for item in items], skip_special_tokens=False)
        return [not self._is_proven(item, text) for item, text in zip(items, decoded, strict=True)]

    def _encoded(self, row: Row, ids: list[int]) -> Encoded:
        count = len(self._opening)
        if ids[:count] != self._opening:
            ids = [*self._opening, *ids]
        if ids[-1:] != [self._tokenizer.eos_token_id]:
            ids.append(self._tokenizer.eos_token_id)
        return Encoded(row, tuple(ids), (False,) * count + (True,) * (len(ids) - count))

    def _is_proven(self, item: Encoded, decoded: str) -> bool:
        count = len(self._opening)
        masked = item.mask == (False,) * count + (True,) * (len(item.ids) - count)
        ends = list(item.ids[:count]) == self._opening and item.ids[-1] == self._tokenizer.eos_token_id
        return masked and ends and self._bare(decoded) == self._bare(item.row.response)

    def _bare(self, text: str) -> str:
        """`text` without opening, end and white space."""
        return packed(text).removeprefix(packed(self._tokenizer.decode(self._opening))).removesuffix(packed(self._tokenizer.eos_token))


def opening(tokenizer: Any) -> list[int]:
    """The tokens that a tokenizer by itself puts before any text."""
    bare, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    return list(whole[: whole.index(bare[0])] if bare else ())


def pieces(item: Encoded, limit: int) -> list[Encoded]:
    """A text cut after every `limit` tokens, without a last piece of one token: that would be predicted from nothing."""
    starts = range(0, len(item.ids), limit)
    cut = [Encoded(item.row, item.ids[start : start + limit], item.mask[start : start + limit]) for start in starts]
    return [piece for piece in cut if piece.teaches()]
