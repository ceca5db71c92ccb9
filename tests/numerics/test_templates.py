"""Chat templates of the families that are claimed, read from the development-only packages that carry them: every answer is supervised up
to the end of its turn, nothing else is, and the mask is proven.

Special tokens are those that the template's text names; text is bytes, so no family's tokenizer is needed.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.data.formats import Row, RowError, content_digest
from finetune_trainer.data.templates import ChatEncoder, Encoded, end_tokens, unproven
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.numerics.conftest import Measured

# Family → file names in the package, the token that begins a text, the one that ends a turn.
FAMILIES: dict[str, tuple[str, str, str, str]] = {
    "TRL: Llama 3": ("trl/chat_templates", r"llama3(_[12])?\.jinja", "<|begin_of_text|>", "<|eot_id|>"),
    "Axolotl: Llama 3": ("axolotl/utils/chat_templates/templates", r"llama3\.jinja", "<|begin_of_text|>", "<|eot_id|>"),
    "Axolotl: Llama 4": ("axolotl/utils/chat_templates/templates", r"llama4\.jinja", "<|begin_of_text|>", "<|eot|>"),
    "TRL: DeepSeek": ("trl/chat_templates", r"deepseek\w*?(?<!training)\.jinja", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "Axolotl: DeepSeek": (
        "axolotl/utils/chat_templates/templates", r"deepseek_v\d\.jinja", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>",
    ),
    "Axolotl: Mistral and Mixtral": ("axolotl/utils/chat_templates/templates", r"mistral\w*\.jinja", "<s>", "</s>"),
    "TRL: Qwen 2.5": ("trl/chat_templates", r"qwen2_5\.jinja", "<|endoftext|>", "<|im_end|>"),
    "TRL: Qwen 3": ("trl/chat_templates", r"qwen3(_\d(_\w+?)?|_instruct_2507)?(?<!training)\.jinja", "<|endoftext|>", "<|im_end|>"),
    "Axolotl: Qwen": ("axolotl/utils/chat_templates/templates", r"qwen(3|3_5|_25)\.jinja", "<|endoftext|>", "<|im_end|>"),
    "Axolotl: ChatML": ("axolotl/utils/chat_templates/templates", r"chatml\.jinja", "<|endoftext|>", "<|im_end|>"),
}  # fmt: skip
# They open a thought in a prompt and forget it in what was answered: there is nothing right to learn from rows without thoughts.
REFUSED = {"TRL: DeepSeek": {"deepseek_r1_distill", "deepseekv3"}}
SPECIAL = re.compile(r"<[|｜][^<>\s'\"]{1,40}[|｜]>|\[/?[A-Z_]{3,20}\]|</?s>")


def found(family: str) -> list[tuple[str, Path]]:
    """(family, file) of each template."""
    folder, pattern, *_ = FAMILIES[family]
    package, _, below = folder.partition("/")
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return [(family, path) for path in sorted((Path(spec.origin).parent / below).iterdir()) if re.fullmatch(pattern, path.name)]


TEMPLATES = [pair for family in FAMILIES for pair in found(family)]


def tokenizer(template: str, begin: str, end: str) -> Any:
    """A byte-level tokenizer with the template and the special tokens that it names."""
    special = sorted({begin, end, *SPECIAL.findall(template)})
    vocabulary = {token: index for index, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(special)
    made = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=begin, eos_token=end, pad_token=end)
    made.chat_template = template
    return made


def row(*turns: tuple[str, str]) -> Row:
    messages = tuple({"role": role, "content": content} for role, content in turns)
    return Row("s", 1, messages, content_digest(messages))


ROWS = {
    "one question": row(("user", "What is 2+2?"), ("assistant", "It is 4.")),
    "with a system turn": row(("system", "Be brief."), ("user", "What is 2+2?"), ("assistant", "It is 4.")),
    "several questions": row(("user", "2+2?"), ("assistant", "Four é."), ("user", "3+3?"), ("assistant", "Six,\nI think.")),
}


def supervised(made: Any, item: Encoded) -> str:
    return str(made.decode([token for token, mask in zip(item.ids, item.mask, strict=True) if mask]))


def test_there_are_templates_of_every_family() -> None:
    assert {family for family, _ in TEMPLATES} == set(FAMILIES)


@pytest.mark.parametrize(("family", "path"), TEMPLATES, ids=[f"{family}/{path.stem}" for family, path in TEMPLATES])
def test_what_a_familys_template_supervises_is_the_answers_and_their_ends(family: str, path: Path, measured: Measured) -> None:
    *_, begin, end = FAMILIES[family]
    made = tokenizer(path.read_text(), begin, end)
    encoder, unbelieved = ChatEncoder(made), 0
    if path.stem in REFUSED.get(family, ()):
        assert all(isinstance(item, RowError) for item in encoder.encode_all(list(ROWS.values())))
        return
    for name, given in ROWS.items():
        item = encoder.encode(given)
        answers = [turn["content"] for turn in given.messages if turn["role"] == "assistant"]
        text = "".join(supervised(made, item).split())
        every, last = ("".join("".join(f"{answer}{end}" for answer in said).split()) for said in (answers, answers[-1:]))
        assert text in (every, last), f"{path.stem}, {name}: {text}"
        unbelieved += unproven([item], end_tokens(made), made)[0]
    measured(f"templates, {family}: rows whose mask is not proven", unbelieved, 0)
