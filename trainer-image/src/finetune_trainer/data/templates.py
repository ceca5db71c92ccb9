"""Conversations → tokens and the mask of those to learn from, by the model's own chat template.

The template is rendered once for each assistant turn's prefix; what the turn adds to the rendered prompt is what the
model must learn to say. Each part is tokenised alone, exactly as the server tokenises a prompt.
Invariant: a supervised turn ends with an end-of-turn token, and the share of supervised tokens is neither 0 nor 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from finetune_trainer.data.formats import Message, Row, RowError
from finetune_trainer.exits import Interrupted, UserError

# What the templates are rendered with here and by the server. Qwen3's puts an empty think block before the last answer,
# and into the prompt only where thinking is off; other templates do not know the name.
RENDERING: Mapping[str, object] = {"enable_thinking": False}


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
        """Whether something is supervised in each conversation."""
        return any(self.mask)


class ChatEncoder:
    """Renders and tokenises with one tokenizer. Raises UserError if it has no chat template."""

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise UserError("NoChatTemplate", "the model's tokenizer has no chat template", "Use the instruct variant of the model.")
        self._tokenizer = tokenizer
        self._ends = end_tokens(tokenizer)

    def encode(self, row: Row) -> Encoded:
        """Tokens and mask of a row: every assistant turn is supervised where the template allows, else the last."""
        turns = [index for index, message in enumerate(row.messages) if message["role"] == "assistant"]
        try:
            return self._encode(row, turns)
        except RowError:
            return self._encode(row, turns[-1:])

    def encode_last(self, row: Row) -> Encoded:
        """Tokens and mask of a row whose last assistant turn alone is supervised."""
        return self._encode(row, [len(row.messages) - 1])

    def _encode(self, row: Row, turns: Sequence[int]) -> Encoded:
        ids: list[int] = []
        mask: list[bool] = []
        done = ""
        for turn in turns:
            prompt, answered = self._render(row.messages[:turn], True), self._render(row.messages[: turn + 1], False)
            if not prompt.startswith(done) or not answered.startswith(prompt):
                raise RowError("the chat template renders this conversation differently with and without its answer")
            before = self._tokens(prompt[len(done) :])
            answer = self._answer(answered[len(prompt) :])
            ids += [*before, *answer[0]]
            mask += [False] * len(before) + answer[1]
            done = answered
        if not any(mask) or all(mask):
            raise RowError("no token, or every token, of this conversation is supervised")
        return Encoded(row, tuple(ids), tuple(mask))

    def _answer(self, text: str) -> tuple[list[int], list[bool]]:
        """Tokens of an assistant turn; supervised up to and with its end-of-turn token, which is added if missing."""
        ids = self._tokens(text)
        ends = [index for index, token in enumerate(ids) if token in self._ends]
        if not ends:
            if self._tokenizer.eos_token_id is None:
                raise RowError("neither the chat template nor the tokenizer has an end-of-turn token")
            ids.append(self._tokenizer.eos_token_id)
            ends = [len(ids) - 1]
        return ids, [index <= ends[-1] for index in range(len(ids))]

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=add_generation_prompt, **RENDERING
                )
            )  # fmt: skip
        except Interrupted:
            raise
        except Exception as error:
            raise RowError(f"the chat template refuses it: {' '.join(str(error).split())[:160]}") from error

    def _tokens(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def end_tokens(tokenizer: Any) -> frozenset[int]:
    """Ids that may end a turn: the tokenizer's end-of-sequence and its special tokens."""
    special = {int(token) for token in tokenizer.all_special_ids}
    added = {int(index) for index, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if getattr(token, "special", False)}
    return frozenset(special | added)


def prove(encoded: Sequence[Encoded], encoder: ChatEncoder, tokenizer: Any) -> None:
    """Check the mask on real rows: each supervised stretch ends its turn, and as the server decodes them they are the
    answers (all, or the last) and nothing more but white space. Raises UserError."""
    ends = end_tokens(tokenizer)
    unlike: list[Encoded] = []
    for item in encoded:
        answers = [_packed(message["content"]) for message in item.row.messages if message["role"] == "assistant"]
        stretches = _stretches(item)
        spoken = _packed("".join(tokenizer.decode(stretch, skip_special_tokens=True) for stretch in stretches))
        if any(stretch[-1] not in ends for stretch in stretches) or spoken not in ("".join(answers), answers[-1]):
            unlike.append(item)
    if len(unlike) > len(encoded) // 10:
        raise UserError(
            "MaskNotProven",
            f"row {unlike[0].row.row} of {unlike[0].row.source}: the supervised tokens are not its answer and an end of turn",
            "The model's chat template is unusual; use another variant of the model.",
        )
    supervised = sum(sum(item.mask) for item in encoded)
    total = sum(len(item.ids) for item in encoded)
    if supervised in (0, total):
        raise UserError("MaskNotProven", f"{supervised} of {total} tokens are supervised", "Check the data's format.")


def _stretches(item: Encoded) -> list[list[int]]:
    """The ids of each run of supervised tokens."""
    runs = groupby(zip(item.ids, item.mask, strict=True), key=lambda pair: pair[1])
    return [[token for token, _ in run] for supervised, run in runs if supervised]


def _packed(text: str) -> str:
    return "".join(text.split())
