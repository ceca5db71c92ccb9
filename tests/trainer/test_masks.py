"""Chat templates: what is supervised, and that it is proven."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.data.formats import Row, RowError, content_digest
from finetune_trainer.data.templates import ChatEncoder, Encoded, end_tokens, unproven
from finetune_trainer.exits import Interrupted, UserError
from finetune_trainer.serve.prompts import chat_prompt
from finetune_trainer.serve.protocol import ChatRequest
from tokenizers import normalizers
from transformers import AutoTokenizer

ASKS = "{% if add_generation_prompt %}[assistant]{% endif %}"
PLAIN = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}" + ASKS
ENDED = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<|im_end|>{% endfor %}" + ASKS
FORGETS = (
    "{% for m in messages %}{% if loop.last or m['role'] != 'assistant' %}[{{ m['role'] }}]{{ m['content'] }}<|im_end|>{% else %}"
    "[assistant]…{% endif %}{% endfor %}" + ASKS
)
THINKS = (
    "{% for m in messages %}[{{ m['role'] }}]{% if loop.last and m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>{% endfor %}"
    + ASKS
    + "{% if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
)  # as Qwen3's
LAST_ASKED = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[user]"
    "{% if loop.last and messages[0]['role'] == 'system' %}{{ messages[0]['content'] }} {% endif %}{{ m['content'] }}[/user]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
)  # as Mistral's
OPENS = ENDED.replace("[assistant]{% endif", "[assistant]<think>\n{% endif")  # as DeepSeek R1's
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}" + ENDED


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def row(*turns: tuple[str, str]) -> Row:
    messages = tuple({"role": role, "content": content} for role, content in turns)
    return Row("s", 1, messages, content_digest(messages))


def supervised(tokenizer: Any, item: Encoded) -> str:
    return str(tokenizer.decode([token for token, mask in zip(item.ids, item.mask, strict=True) if mask]))


ONE = row(("user", "2+2?"), ("assistant", "4"))
TWO = row(("system", "Be brief."), ("user", "2+2?"), ("assistant", "4"), ("user", "3+3?"), ("assistant", "6"))
CASES = {
    "the answer and the end of its turn": (None, ONE, "4<|im_end|>"),
    "every answer of a conversation": (None, TWO, "4<|im_end|>6<|im_end|>"),
    "an end is added where the template has none": (PLAIN, ONE, "4<|im_end|>"),
    "the last answer alone where the template forgets earlier ones": (FORGETS, TWO, "6<|im_end|>"),
    "the last answer where the system turn is told with the last question alone": (LAST_ASKED, TWO, " 6<|im_end|>"),
    "the answer without the empty thoughts before it": (THINKS, ONE, "4<|im_end|>"),
}


@pytest.mark.parametrize(("template", "given", "expected"), CASES.values(), ids=CASES)
def test_what_is_supervised(tokenizer: Any, template: str | None, given: Row, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if template:
        monkeypatch.setattr(tokenizer, "chat_template", template)
    item = ChatEncoder(tokenizer).encode(given)
    assert supervised(tokenizer, item) == expected
    assert unproven([item], end_tokens(tokenizer), tokenizer) == [False]


@pytest.mark.parametrize("template", [None, THINKS, LAST_ASKED], ids=["its own", "with thoughts", "with the system turn last"])
@pytest.mark.parametrize("given", [ONE, TWO], ids=["a question", "a conversation"])
def test_tokens_before_the_answer_are_those_that_the_server_feeds_the_model(
    template: str | None, given: Row, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    if template:
        monkeypatch.setattr(tokenizer, "chat_template", template)
    item = ChatEncoder(tokenizer).encode_all([given], last=True)[0]
    assert isinstance(item, Encoded)
    request = ChatRequest.model_validate({"model": "bot", "messages": given.messages[:-1]})
    assert list(item.ids[: item.mask.index(True)]) == chat_prompt(tokenizer, request)


def test_a_template_that_opens_a_thought_before_answers_that_have_none_is_refused(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", OPENS)
    with pytest.raises(RowError, match="differently with and without its answer"):
        ChatEncoder(tokenizer).encode(ONE)


def test_the_reason_of_a_template_that_refuses_a_row_is_told(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", REFUSES)
    with pytest.raises(Exception, match="the chat template refuses it: no system turns"):
        ChatEncoder(tokenizer).encode(TWO)


def test_a_request_to_stop_is_no_reason_to_drop_a_row(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> str:
        raise Interrupted("Interrupted", "stopped by SIGTERM")

    monkeypatch.setattr(tokenizer, "apply_chat_template", stopped)
    with pytest.raises(Interrupted):
        ChatEncoder(tokenizer).encode(ONE)


def test_a_model_without_a_template_is_refused(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(UserError, match="no chat template"):
        ChatEncoder(tokenizer)


SYNTAX = {
    "a block that nobody ends": ("{% for message in messages %}\n{{ message['content'] }}", r"in line 2: Unexpected end of template"),
    "an expression that breaks off": ("{# a comment #}\n\n{{ messages[0]['content' }}", r"in line 3: unexpected '}'"),
    "a filter that there is not": ("{{ messages[0]['content'] | shout }}", r"in line 1: No filter named 'shout'"),
}


@pytest.mark.parametrize(("template", "words"), SYNTAX.values(), ids=SYNTAX)
def test_a_template_that_is_none_is_told_once_and_not_by_row(
    template: str, words: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(UserError, match=f"the model's chat template is wrong {words}") as found:
        ChatEncoder(tokenizer)
    assert found.value.reason == "ChatTemplateInvalid"
    assert "name another model" in found.value.fix


def test_an_answer_whose_accents_the_tokenizer_puts_upon_their_letters_is_proven(tiny_model: Path) -> None:
    """As Qwen's does."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    item = ChatEncoder(tokenizer).encode(row(("user", "Where?"), ("assistant", "In the cafe\u0301.")))
    assert supervised(tokenizer, item) == "In the caf\u00e9.<|im_end|>"
    assert unproven([item], end_tokens(tokenizer), tokenizer) == [False]


def _earlier(mask: tuple[bool, ...], count: int) -> tuple[bool, ...]:
    return tuple(any(mask[index : index + count + 1]) for index in range(len(mask)))


WRONG = {
    "nothing is supervised but the end": lambda item: replace(item, mask=(*[False] * (len(item.mask) - 2), True, False)),
    "the end is not supervised": lambda item: replace(item, mask=(*item.mask[:-2], False, False)),
    "more than the answer is supervised": lambda item: replace(item, mask=_earlier(item.mask, 3)),
    "everything is supervised": lambda item: replace(item, mask=(True,) * len(item.mask)),
}


@pytest.mark.parametrize("spoil", WRONG.values(), ids=WRONG)
def test_a_mask_is_not_believed_where(tokenizer: Any, spoil: Any) -> None:
    encoder = ChatEncoder(tokenizer)
    items = [encoder.encode(TWO), spoil(encoder.encode(ONE)), encoder.encode(ONE)]
    assert unproven(items, end_tokens(tokenizer), tokenizer) == [False, True, False]


def test_rows_are_encoded_together_as_they_are_alone(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", REFUSES)
    encoder = ChatEncoder(tokenizer)
    found = encoder.encode_all([ONE, TWO, ONE])
    assert found[0] == found[2] == encoder.encode(ONE)
    assert "no system turns" in str(found[1])
