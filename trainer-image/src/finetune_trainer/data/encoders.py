"""Rows → tokens, each as what it is: a conversation by the model's chat template, a plain text as it stands.

A tokenizer is asked for a template, or for an end of text, when the first row comes that needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, TypeVar

from finetune_trainer.data.formats import Row, RowError
from finetune_trainer.data.plain import TextEncoder
from finetune_trainer.data.templates import ChatEncoder, Encoded, end_tokens, unproven

T = TypeVar("T")
R = TypeVar("R")


class RowEncoder:
    """Encodes with one tokenizer. Raises UserError where it lacks what a row needs."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def chat(self) -> ChatEncoder:
        """What encodes conversations."""
        return ChatEncoder(self.tokenizer)

    @cached_property
    def text(self) -> TextEncoder:
        """What encodes plain texts."""
        return TextEncoder(self.tokenizer)

    @cached_property
    def ends(self) -> frozenset[int]:
        """Ids that may end a turn."""
        return end_tokens(self.tokenizer)

    def expect(self, formats: Iterable[str]) -> None:
        """Raise UserError for a template that is wrong, or absent where one of the `formats` that are named needs it."""
        if getattr(self.tokenizer, "chat_template", None) or not {"Auto", "Text"}.issuperset(formats):
            self.chat  # noqa: B018 - made before a row is read

    def encode(self, row: Row) -> Encoded:
        """Tokens and mask of a row. Raises RowError."""
        found = self.encode_all([row])[0]
        if isinstance(found, RowError):
            raise found
        return found

    def encode_all(self, rows: Sequence[Row]) -> list[Encoded | RowError]:
        """`encode` of each row, or why there is none."""
        return _each(rows, lambda row: row.plain, lambda texts: self.text.encode_all(texts), lambda spoken: self.chat.encode_all(spoken))

    def unproven(self, items: Sequence[Encoded]) -> list[bool]:
        """Of each row, whether the mask is not to be believed."""
        return _each(
            items,
            lambda item: item.row.plain,
            lambda texts: self.text.unproven(texts),
            lambda spoken: unproven(spoken, self.ends, self.tokenizer),
        )


def _each(
    items: Sequence[T],
    plain: Callable[[T], bool],
    of_texts: Callable[[list[T]], Iterable[R]],
    of_conversations: Callable[[list[T]], Iterable[R]],
) -> list[R]:
    """What either gives of its items, in the order of all of them; it is not asked where there are none."""
    texts, conversations = [item for item in items if plain(item)], [item for item in items if not plain(item)]
    written = iter(of_texts(texts) if texts else ())
    spoken = iter(of_conversations(conversations) if conversations else ())
    return [next(written if plain(item) else spoken) for item in items]
