"""The texts by which forgetting is seen: short ones of many kinds and languages, which no tuning is about. They come with the package.

Invariant: the digest names the texts; results of other texts are never compared or taken up.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from finetune_trainer.data.encoders import RowEncoder
from finetune_trainer.evaluate.loss import encode
from finetune_trainer.evaluate.rows import TestRow
from finetune_trainer.exits import UserError

TEXTS = "general.jsonl"


@dataclass(frozen=True)
class Text:
    """One text by its name and kind (`prose`, `languages`, `code`, `questions`): its token ids, of which those from `first` on count."""

    name: str
    kind: str
    ids: tuple[int, ...]
    first: int

    @property
    def tokens(self) -> int:
        """How many tokens count."""
        return len(self.ids) - self.first


def digest(read: Collection[str] | None = None) -> str:
    """Names the texts, all of them or those that were `read` (by their names): `sha256:<hex>`."""
    those = [line for line, one in zip(_lines(), documents(), strict=True) if read is None or one["id"] in read]
    return "sha256:" + hashlib.sha256("\n".join(those).encode()).hexdigest()


def documents() -> list[dict[str, str]]:
    """What the file holds: name, kind and language, and a text or a question with its answer."""
    return [json.loads(line) for line in _lines()]


def encoded(tokenizer: Any, longest: int) -> list[Text]:
    """All texts that fit into `longest` tokens. Of a plain one every token counts that another comes before; of a question, asked by the
    chat template, those of the answer. A question that the template refuses, or for which there is
    none, is left out."""
    encoder = RowEncoder(tokenizer)
    found: list[Text] = []
    for document in documents():
        with suppress(UserError):
            found.append(Text(document["id"], document["kind"], *_ids(encoder, document, longest)))
    return [text for text in found if text.tokens > 0 and len(text.ids) <= longest]


def _ids(encoder: RowEncoder, document: dict[str, str], longest: int) -> tuple[tuple[int, ...], int]:
    if "text" in document:
        return tuple(encoder.tokenizer(document["text"])["input_ids"]), 1
    asked = ({"role": "user", "content": document["question"]},)
    ids, first = encode(encoder, TestRow(document["id"], asked, document["answer"]), longest)
    return tuple(ids), first


def kinds(texts: Sequence[Text]) -> list[str]:
    """The kinds there are, in the order in which they come first."""
    return list(dict.fromkeys(text.kind for text in texts))


@cache
def _lines() -> list[str]:
    content = resources.files(__package__).joinpath(TEXTS).read_text(encoding="utf-8")
    return [line for line in content.split("\n") if line]
