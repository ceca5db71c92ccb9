"""Conversations → tokens and the mask of those to learn from, by the model's own chat template.

The template is rendered once for each assistant turn's prefix; what the turn adds to the rendered prompt is what the
model must learn to say. Each part is tokenised alone, exactly as the server tokenises a prompt.
Invariant: a supervised turn ends with an end-of-turn token, and the share of supervised tokens is neither 0 nor 1.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

from jinja2 import TemplateSyntaxError

from finetune_trainer.data.formats import Message, Row, RowError
from finetune_trainer.exits import Interrupted, UserError

# What the templates are rendered with here and by the server. Qwen3's puts an empty think block before the last answer,
# and into the prompt only where thinking is off; other templates do not know the name.
RENDERING: Mapping[str, object] = {"enable_thinking": False}
DIFFERS = "the chat template renders this conversation differently with and without its answer"


@dataclass(frozen=True)
class Encoded:
    """A tokenised conversation: ids and, beside each, whether it is supervised."""

    row: Row
    ids: tuple[int, ...]
    mask: tuple[bool, ...]

    @property
    def longest(self) -> int:
        """Tokens of the longest conversation."""
        return len(self.ids)

    def conversations(self) -> tuple[Encoded, ...]:
        """What was encoded, one conversation each."""
        return (self,)

    def shortened(self, limit: int) -> Encoded:
        """Each conversation cut after `limit` tokens."""
        return Encoded(self.row, self.ids[:limit], self.mask[:limit])

    def teaches(self) -> bool:
        """Whether something is supervised in each conversation; its first token is predicted from nothing."""
        return any(self.mask[1:])


class ChatEncoder:
    """Renders and tokenises with one tokenizer. Raises UserError if it has no chat template, or one that is no template."""

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                "NoChatTemplate",
                "the model's tokenizer has no chat template (neither chat_template.jinja nor tokenizer_config.json has one)",
                "Use the instruct variant of the model.",
            )
        self.tokenizer = tokenizer
        self._ends = end_tokens(tokenizer)
        with suppress(RowError):
            self._render([{"role": "user", "content": "?"}], True)  # what is wrong with the template itself is told before a row is read

    def encode(self, row: Row) -> Encoded:
        """Tokens and mask of a row: every assistant turn is supervised where the template allows, else the last."""
        found = self.encode_all([row])[0]
        if isinstance(found, RowError):
            raise found
        return found

    def encode_all(self, rows: Sequence[Row], *, last: bool = False) -> list[Encoded | RowError]:
        """`encode` of each row, or why there is none; one call of the tokenizer for all of them. With `last` no other assistant
        turn is supervised."""
        rendered = [self._rendered(row, last) for row in rows]
        ids = iter(self._tokens([text for parts in rendered if not isinstance(parts, RowError) for text in parts]))
        result: list[Encoded | RowError] = []
        for row, parts in zip(rows, rendered, strict=True):
            try:
                result.append(parts if isinstance(parts, RowError) else self._joined(row, [next(ids) for _ in parts]))
            except RowError as error:
                result.append(error)
        return result

    def _rendered(self, row: Row, last: bool) -> list[str] | RowError:
        """The parts of all assistant turns, or, if `last` or where the template renders them otherwise, of the last."""
        turns = [index for index, message in enumerate(row.messages) if message["role"] == "assistant"]
        if not last:
            with suppress(RowError):
                return self._parts(row, turns)
        try:
            return self._parts(row, turns[-1:])
        except RowError as error:
            return error

    def _parts(self, row: Row, turns: Sequence[int]) -> list[str]:
        """The rendered conversation in alternating parts: context, answer, context, answer …"""
        parts: list[str] = []
        done = ""
        for turn in turns:
            prompt, answered = self._render(row.messages[:turn], True), self._render(row.messages[: turn + 1], False)
            if len(turns) == 1 and not answered.startswith(prompt):
                return [prompt, _said(prompt, answered, row.messages[turn - 1]["content"], row.messages[turn]["content"])]
            if not prompt.startswith(done) or not answered.startswith(prompt):
                raise RowError(DIFFERS)
            parts += [prompt[len(done) :], answered[len(prompt) :]]
            done = answered
        return parts

    def _joined(self, row: Row, parts: Sequence[list[int]]) -> Encoded:
        ids: list[int] = []
        mask: list[bool] = []
        for before, answer in zip(parts[::2], parts[1::2], strict=True):
            said, supervised = self._answer(answer)
            ids += [*before, *said]
            mask += [False] * len(before) + supervised
        if not any(mask) or all(mask):
            raise RowError("no token, or every token, of this conversation is supervised")
        return Encoded(row, tuple(ids), tuple(mask))

    def _answer(self, tokens: list[int]) -> tuple[list[int], list[bool]]:
        """Tokens of an assistant turn; supervised up to and with its end-of-turn token, which is added if missing."""
        ids = list(tokens)
        ends = [index for index, token in enumerate(ids) if token in self._ends]
        if not ends:
            if self.tokenizer.eos_token_id is None:
                raise RowError("neither the chat template nor the tokenizer has an end-of-turn token")
            ids.append(self.tokenizer.eos_token_id)
            ends = [len(ids) - 1]
        return ids, [index <= ends[-1] for index in range(len(ids))]

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=add_generation_prompt, **RENDERING
                )
            )  # fmt: skip
        except Interrupted:
            raise
        except TemplateSyntaxError as error:
            raise UserError(
                "ChatTemplateInvalid",
                f"the model's chat template is wrong in line {error.lineno}: {error.message}",
                "Correct the model's chat_template.jinja (or chat_template in its tokenizer_config.json), or name another model.",
            ) from error
        except Exception as error:
            raise RowError(f"the chat template refuses it: {' '.join(str(error).split())[:160]}") from error

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        return list(self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]) if texts else []


def _said(prompt: str, answered: str, question: str, answer: str) -> str:
    """The answer as `answered` renders it, with what ends its turn. `prompt` may say more before the question (Mistral's template has the
    system turn only where the question is last); after it both must open the answer alike. Raises RowError where they do not."""
    place = answered.rfind(answer.strip())
    before = answered[: max(place, 0)]
    opened, asked = before.rstrip(), prompt.rstrip()
    places = [text.rfind(question.strip()) for text in (opened, asked)]
    if min(places) < 0 or opened[places[0] :] != asked[places[1] :]:
        raise RowError(DIFFERS)
    return answered[len(opened) :]


def end_tokens(tokenizer: Any) -> frozenset[int]:
    """Ids that may end a turn: the tokenizer's end-of-sequence and its special tokens."""
    special = {int(token) for token in tokenizer.all_special_ids}
    added = {int(index) for index, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if getattr(token, "special", False)}
    return frozenset(special | added)


def said_control_token(row: Row, ends: frozenset[int], tokenizer: Any) -> str:
    """The first of the tokens `ends` that an answer of `row` has as text, '' if there is none."""
    answers = [message["content"] for message in (*row.messages, *row.rejected) if message["role"] == "assistant"]
    tokens = tokenizer.convert_ids_to_tokens(sorted(ends))
    return next((token for token in tokens if any(token in answer for answer in answers)), "")


def unproven(items: Sequence[Encoded], ends: frozenset[int], tokenizer: Any) -> list[bool]:
    """Of each row, whether the mask of one of its conversations is not to be believed: a supervised stretch must end its turn,
    and as the server decodes them the stretches must be the answers (all, or the last) and nothing more but white space."""
    conversations = [item.conversations() for item in items]
    doubts = iter(_doubts([one for several in conversations for one in several], ends, tokenizer))
    return [any(list(islice(doubts, len(several)))) for several in conversations]


def _doubts(items: Sequence[Encoded], ends: frozenset[int], tokenizer: Any) -> list[bool]:
    """`unproven` of single conversations."""
    stretches = [_stretches(item) for item in items]
    spoken = iter(tokenizer.batch_decode([stretch for runs in stretches for stretch in runs], skip_special_tokens=True))
    result = []
    for item, runs in zip(items, stretches, strict=True):
        said = packed("".join(next(spoken) for _ in runs))
        answers = [packed(message["content"]) for message in item.row.messages if message["role"] == "assistant"]
        result.append(any(run[-1] not in ends for run in runs) or said not in ("".join(answers), answers[-1]))
    return result


def _stretches(item: Encoded) -> list[list[int]]:
    """The ids of each run of supervised tokens."""
    runs = groupby(zip(item.ids, item.mask, strict=True), key=lambda pair: pair[1])
    return [[token for token, _ in run] for supervised, run in runs if supervised]


def packed(text: str) -> str:
    """What of a text must come back from its tokens: all but white space, however its letters and their accents were put together."""
    return unicodedata.normalize("NFC", "".join(text.split()))
