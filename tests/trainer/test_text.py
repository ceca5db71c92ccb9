"""Rows of plain text: all of a text and its end are learnt, by no chat template, and the loss alone scores it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetune_trainer import layout
from finetune_trainer.config import RunConfig
from finetune_trainer.data import arrays, formats, prepare
from finetune_trainer.data.encoders import RowEncoder
from finetune_trainer.data.formats import Row, content_digest
from finetune_trainer.data.plain import TextEncoder, pieces
from finetune_trainer.data.reading import RawRow
from finetune_trainer.data.templates import Encoded
from finetune_trainer.evaluate import cli, fidelity, general, loss, probe
from finetune_trainer.evaluate.rows import TestRow, test_rows
from finetune_trainer.exits import UserError
from finetune_trainer.serve.loading import load
from finetune_trainer.train import objective
from tokenizers import normalizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.trainer.support import make_config, rows, running, training, write_rows

Config = dict[str, Any]
SELLERS = ("Ada", "Bo", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal")
PLACES = ("the old harbour", "a bridge of stone", "the upper market", "his garden gate", "a quiet yard", "the north tower")


def texts(count: int = 48) -> list[Config]:
    """`count` (at most 48) different texts of unequal length."""
    pairs = [(seller, place) for place in PLACES for seller in SELLERS][:count]
    return [
        {"text": f"{seller} sells lamp{n} at {place} for coin{n}" + ", and more" * (n % 4) + "."} for n, (seller, place) in enumerate(pairs)
    ]


def text(content: str) -> Row:
    return formats.convert(RawRow("s", 1, {"text": content}), "Text")


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def opened(tokenizer: Any) -> Any:
    """The tokenizer with a token that it puts before every text."""
    start = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    tokenizer.backend_tokenizer.post_processor = start
    return tokenizer


def composing(tokenizer: Any) -> Any:
    """The tokenizer as one that puts letters and their accents together, as Qwen's."""
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def as_it_is(tokenizer: Any) -> Any:
    return tokenizer


LEARNT: dict[str, tuple[Callable[[Any], Any], str, str, str]] = {
    "a text and its end": (as_it_is, "Two lamps.\n", "", "Two lamps.\n<|im_end|>"),
    "not what the tokenizer puts before it": (opened, "Two lamps.", "<|im_start|>", "Two lamps.<|im_end|>"),
    "what the tokenizer would put before it, once": (opened, "<|im_start|>Two lamps.", "<|im_start|>", "Two lamps.<|im_end|>"),
    "its end once": (as_it_is, "Two lamps.<|im_end|>", "", "Two lamps.<|im_end|>"),
    "control tokens that it holds": (as_it_is, "<|im_start|>user\n?<|im_end|>\nNo.", "", "<|im_start|>user\n?<|im_end|>\nNo.<|im_end|>"),
    "letters whose accents stand for themselves": (as_it_is, "cafe\u0301 日本", "", "cafe\u0301 日本<|im_end|>"),
    "accents that the tokenizer puts upon their letters": (composing, "cafe\u0301", "", "caf\u00e9<|im_end|>"),
}


@pytest.mark.parametrize(("made", "content", "context", "learnt"), LEARNT.values(), ids=LEARNT)
def test_what_is_learnt_of_a_text(made: Callable[[Any], Any], content: str, context: str, learnt: str, tokenizer: Any) -> None:
    found, encoder = made(tokenizer), RowEncoder(tokenizer)
    item = encoder.encode(text(content))
    spoken = [[token for token, supervised in zip(item.ids, item.mask, strict=True) if supervised is wanted] for wanted in (False, True)]
    assert [found.decode(ids) for ids in spoken] == [context, learnt]
    assert encoder.unproven([item]) == [False]


WRONG: dict[str, Callable[[Encoded], Encoded]] = {
    "a token of it is not supervised": lambda item: replace(item, mask=(*item.mask[:5], False, *item.mask[6:])),
    "what comes before it is supervised": lambda item: replace(item, mask=(True,) * len(item.mask)),
    "what comes before it is absent": lambda item: replace(item, ids=item.ids[1:], mask=item.mask[1:]),
    "its end is absent": lambda item: replace(item, ids=item.ids[:-1], mask=item.mask[:-1]),
    "a token is another": lambda item: replace(item, ids=(*item.ids[:5], item.ids[4], *item.ids[6:])),
}


@pytest.mark.parametrize("spoil", WRONG.values(), ids=WRONG)
def test_the_mask_of_a_text_is_not_believed_where(spoil: Callable[[Encoded], Encoded], tokenizer: Any) -> None:
    encoder = TextEncoder(opened(tokenizer))
    items = encoder.encode_all([text("Two lamps."), text("One chair."), text("No drum.")])
    assert encoder.unproven([items[0], spoil(items[1]), items[2]]) == [False, True, False]


def test_texts_and_conversations_are_encoded_together_as_they_are_alone(tokenizer: Any) -> None:
    turns = ({"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"})
    both = [text("Two lamps."), Row("s", 2, turns, content_digest(turns)), text("One chair.")]
    encoder = RowEncoder(tokenizer)
    found = encoder.encode_all(both)
    assert found == [encoder.encode(row) for row in both]
    assert encoder.unproven([item for item in found if isinstance(item, Encoded)]) == [False] * 3


def test_a_tokenizer_without_an_end_of_text_is_refused(tokenizer: Any) -> None:
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token") as found:
        RowEncoder(tokenizer).encode(text("Two lamps."))
    assert (found.value.reason, "eos_token" in found.value.fix) == ("NoEndOfText", True)


@pytest.mark.parametrize(("limit", "lengths"), [(3, [3, 3, 3, 2]), (5, [5, 5]), (11, [11])])
def test_pieces_are_all_of_a_text_but_a_last_token_alone(limit: int, lengths: list[int], tokenizer: Any) -> None:
    item = RowEncoder(tokenizer).encode(text("Two lamps."))
    cut = pieces(item, limit)
    assert [len(piece.ids) for piece in cut] == lengths
    assert sum((piece.ids for piece in cut), ()) == item.ids[: sum(lengths)]
    assert all(all(piece.mask) for piece in cut)


def test_the_loss_of_training_is_that_of_all_tokens_as_transformers_computes_it(tiny_model: Path, tokenizer: Any) -> None:
    """As TRL learns from `text` rows: labels are the input ids."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    item = RowEncoder(tokenizer).encode(text("Two lamps at the old harbour."))
    row = (np.array(item.ids, dtype=np.uint32), np.array(item.mask))
    reader = objective.reader(model, model, 0)
    with torch.no_grad():
        ours = objective.loss_sum(model, objective.pack([row], reader, torch.device("cpu")), reader) / (len(item.ids) - 1)
        theirs = model(input_ids=torch.tensor([item.ids]), labels=torch.tensor([item.ids])).loss
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


@pytest.fixture(scope="module")
def bare(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fetched model without a chat template."""
    folder = tmp_path_factory.mktemp("bare") / "model"
    with layout.transaction(folder) as target:
        for path in (work / "models" / "tiny").iterdir():
            if path.name not in (layout.COMMIT, layout.MANIFEST, "chat_template.jinja"):
                (target.folder / path.name).write_bytes(path.read_bytes())
    assert AutoTokenizer.from_pretrained(folder).chat_template is None
    return folder


@pytest.fixture
def run(bare: Path, tmp_path: Path) -> Any:
    """Prepare these rows for the model without a chat template; the folder and the result."""

    def prepared(values: list[Any], **overrides: Any) -> tuple[Path, Config]:
        source = write_rows(tmp_path / "rows.jsonl", values)
        document = make_config("prepare", tmp_path, bare, source, **{"model__path": str(bare), **overrides})
        return Path(document["data"]["path"]), dict(prepare.main(RunConfig.model_validate(document)))

    return prepared


def contents(folder: Path, split: str, tokenizer: Any) -> list[str]:
    found = arrays.load(folder, split)
    return [str(tokenizer.decode(found.row(index)[0])) for index in range(len(found))]


@pytest.mark.parametrize("form", ["Auto", "Text"])
def test_texts_are_prepared_for_a_model_without_a_template(form: str, run: Any, tokenizer: Any, tmp_path: Path) -> None:
    named = {"source": "configmap://rows/train.jsonl", "mount": str(tmp_path / "rows.jsonl"), "format": form}
    folder, result = run(texts(), data__train=named)
    report = json.loads((folder / "report.json").read_text())
    assert [source["format"] for source in report["sources"]] == ["Text"]
    assert result["rows"]["invalid"] == 0
    kept = [content.removesuffix("<|im_end|>") for split in ("train", "validation") for content in contents(folder, split, tokenizer)]
    assert sorted([*kept, *(row.reference for row in test_rows(folder))]) == sorted(row["text"] for row in texts())
    assert result["tokens"]["supervised"] == result["tokens"]["train"]
    assert all(part["supervised"] for row in report["examples"] for part in row["parts"])
    assert all(row.plain for row in test_rows(folder))


BAD: dict[str, tuple[list[Any], Config, str, str, str]] = {
    "a text of nothing": ([*texts(10), {"text": " \n"}], {}, "TooManyInvalidRows", "row 11: field text is empty", "Correct"),
    "a text that is none": ([*texts(10), {"text": ["a"]}], {}, "TooManyInvalidRows", "row 11: field text is a list, not text", "Correct"),
    "a short text": (
        [*texts(10), {"text": "Lamps."}], {"data__quality": {"minResponseCharacters": 10}}, "TooManyInvalidRows",
        "row 11: field text has 6 characters, fewer than 10", "Correct",
    ),
    "a text that goes round in circles": (
        [*texts(10), {"text": "and so on it goes " * 20}], {}, "TooManyInvalidRows", "row 11: field text repeats itself: 95 %", "Correct",
    ),
    "a conversation among texts": (
        [*texts(10), rows(1)[0]], {}, "TooManyInvalidRows", "row 11: it is InstructionInputOutput, but the file is Text", "Correct",
    ),
    "a text in another language": (
        [*texts(10), {"text": "Le boulanger se lève à trois heures du matin, pétrit la pâte et la laisse reposer longtemps."}],
        {"data__quality": {"languages": ["en"], "minResponseCharacters": 1}}, "TooManyInvalidRows",
        "row 11: field text is in another language: fr", "Correct",
    ),
    "personal data": (
        [*texts(10), {"text": "Ask a@example.org today."}], {"data__quality": {"personalData": "Fail"}}, "PersonalDataFound",
        "1 rows hold e-mail addresses, the first is row 11", "Remove",
    ),
    "texts that are all too long": (
        [{"text": f"{n} {'word ' * 100}"} for n in range(10)], {"data__quality": {"nearDuplicates": "Keep", "maxRepetitionPercent": 100}},
        "NoTrainingRows", "field text is too long, and data.quality.onTooLong is not Truncate, which cuts it into pieces: 503 tokens",
        "Raise training.maxSequenceLength",
    ),
    "texts for DPO": (
        texts(10), {"method__objective": "DPO"}, "FormatNotOfObjective", "is Text, and method.objective is DPO",
        "DPO learns from Preference rows",
    ),
    "conversations for a model without a template": (rows(10), {}, "NoChatTemplate", "no chat template", "instruct"),
}  # fmt: skip


@pytest.mark.parametrize(("values", "overrides", "reason", "words", "fix"), BAD.values(), ids=BAD)
def test_rows_are_refused_with_what_is_wrong_and_the_fix(
    values: list[Any], overrides: Config, reason: str, words: str, fix: str, run: Any
) -> None:  # fmt: skip
    with pytest.raises(UserError) as found:
        run(values, **overrides)
    assert (found.value.reason, words in found.value.message, fix in found.value.fix) == (reason, True, True), found.value


def test_texts_are_compared_and_redacted(run: Any, tokenizer: Any) -> None:
    like = "the old clock in the hall of the house by the river strikes nine times every evening before the lamps go out and nobody hears"
    values = [*texts(40), *texts(4), *({"text": f"{like} {word}"} for word in "ab"), *texts(4), {"text": "Ask a@example.org today."}]
    folder, result = run(values, data__quality={"personalData": "Redact"})
    assert (result["rows"]["duplicate"], result["rows"]["nearDuplicate"]) == (8, 1)
    kept = [content for split in ("train", "validation") for content in contents(folder, split, tokenizer)]
    kept += [row.reference for row in test_rows(folder)]
    assert sum("Ask [email] today." in content for content in kept) == 1


def test_texts_that_come_again_and_again_are_not_taken_for_labels(run: Any) -> None:
    """Of labels a single character would do."""
    _, result = run(texts(10) * 5, data__quality={})
    assert (result["rows"]["duplicate"], result["minResponseCharacters"]) == (40, 10)


LONG = {"text": " ".join(f"word{n}" for n in range(200))}
POLICIES = {"Drop": 0, "Truncate": 6}  # of 1,491 tokens with the end, in pieces of 256


@pytest.mark.parametrize(("policy", "count"), POLICIES.items(), ids=POLICIES)
def test_a_long_text_is_left_out_or_learnt_in_pieces(policy: str, count: int, run: Any, tokenizer: Any) -> None:
    whole = {"train": 100, "validation": 0, "test": 0, "seed": 17}
    folder, result = run([*texts(20), LONG], data__split=whole, data__quality={"onTooLong": policy, "minResponseCharacters": 1})
    cut = [content for content in contents(folder, "train", tokenizer) if "word" in content]
    assert (len(cut), result["rows"]["train"], result["rows"]["tooLong"]) == (count, 20 + count, 1)
    assert "".join(cut) == (f"{LONG['text']}<|im_end|>" if count else "")
    assert max(arrays.load(folder, "train").lengths) <= 256


def test_a_long_test_text_is_sealed_once_and_whole(run: Any, tmp_path: Path) -> None:
    test = {"source": "pvc://sets/test.jsonl", "mount": str(write_rows(tmp_path / "test.jsonl", [LONG])), "format": "Auto"}
    folder, result = run(texts(20), data__test=test, data__quality={"onTooLong": "Truncate", "minResponseCharacters": 1})
    assert ([row.reference for row in test_rows(folder)], result["rows"]["test"]) == ([LONG["text"]], 1)


def test_a_text_that_does_not_come_back_from_its_tokens_is_left_out(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = TextEncoder._encoded

    def spoilt(self: TextEncoder, row: Row, ids: list[int]) -> Encoded:
        return encode(self, row, ids[:-1] if "Ada" in row.response else ids)

    monkeypatch.setattr(TextEncoder, "_encoded", spoilt)
    with pytest.raises(UserError, match=r"row \d+ of .*: field text does not come back from its tokens") as found:
        run(texts(), data__quality={"maxInvalidPercent": 100})
    assert (found.value.reason, "another model" in found.value.fix) == ("MaskNotProven", True)


def test_texts_are_mixed_into_conversations(run: Any, work: Path, tokenizer: Any, tmp_path: Path) -> None:
    mix = {"source": "pvc://sets/mix.jsonl", "mount": str(write_rows(tmp_path / "mix.jsonl", texts(20))), "format": "Text", "percent": 20}
    folder, result = run(rows(60), model__path=str(work / "models" / "tiny"), data__mix=[mix])
    found = contents(folder, "train", tokenizer)
    assert sum(content.startswith("<|im_start|>user") for content in found) == result["rows"]["train"] - 10
    assert sum(" sells lamp" in content and content.endswith(".<|im_end|>") for content in found) == 10


def bits(model: Any, ids: list[int], first: int) -> float:
    """Bits of ids[first:], one by one."""
    chances = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return -sum(float(chances[place - 1, ids[place]]) for place in range(first, len(ids))) / math.log(2)


@pytest.mark.parametrize("most", [4096, 40, 7])
def test_the_loss_of_a_text_is_of_all_that_another_token_comes_before(most: int, bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that is longer than is read at once is read in pieces."""
    monkeypatch.setattr(loss, "BATCH_TOKENS", most)
    loaded = load(bare, None, dtype=torch.float32)
    contents = [row["text"] for row in texts(5)]
    told: list[int] = []
    found = loss.loss_rows(loaded, [TestRow(str(n), (), content) for n, content in enumerate(contents)], told.append)
    for content, row in zip(contents, found, strict=True):
        ids = [*loaded.tokenizer(content)["input_ids"], loaded.tokenizer.eos_token_id]
        with torch.no_grad():
            cut = [ids[start : start + most] for start in range(0, len(ids), most)]
            wanted = sum(bits(loaded.model, piece, 1) for piece in cut)
        assert row.scores["Loss"] == pytest.approx(-wanted / len(content.encode()), rel=1e-4)
    assert (told[-1], told) == (5, sorted(told))


def test_the_first_token_of_a_text_counts_where_the_tokenizer_puts_one_before_it(bare: Path) -> None:
    loaded = load(bare, None, dtype=torch.float32)
    encoded = loss.encode(RowEncoder(opened(loaded.tokenizer)), TestRow("a", (), "Lamps."), 5)
    assert (loaded.tokenizer.decode(encoded[0]), encoded[1]) == ("<|im_start|>Lamps.<|im_end|>", 1)


def test_a_metric_of_answers_is_refused_before_a_server_is_asked(run: Any, bare: Path, tmp_path: Path) -> None:
    folder, _ = run(texts())
    count = len(test_rows(folder))
    config = RunConfig.model_validate(make_config("evaluate", tmp_path, bare, model__path=str(bare)))
    with pytest.raises(UserError, match=f"evaluation.metrics: ExactMatch scores answers, and {count} of {count} test rows") as found:
        cli.main(config)
    assert (found.value.reason, "scored by their loss" in found.value.fix) == ("MetricNeedsAnswers", True)


def test_general_texts_and_answers_are_read_without_a_template(bare: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bare)
    kinds = general.kinds(general.encoded(tokenizer, 2048))
    assert ("prose" in kinds, "questions" in kinds) == (True, False)
    (answer,) = fidelity.answers(tokenizer, [TestRow("a", (), "so " * 100)], 50)
    assert (len(answer.ids), answer.tokens) == (50, 49)


def test_a_model_without_a_template_learns_texts_and_is_scored_by_their_loss(run: Any, bare: Path, tmp_path: Path) -> None:
    """The whole way, with what the probe finds of it and the page that tells it."""
    folder, _ = run(texts())
    own = {"model__path": str(bare), "data__path": str(folder)}
    with training(tmp_path / "gang", make_config("train", tmp_path, bare, training__epochs=3, **own)) as (stage,):
        artifact = Path(stage.ends(0).message["artifact"])
    asked = {"evaluation__metrics": [{"type": "Loss"}], **own}

    def done(command: str, **overrides: Any) -> Config:
        (tmp_path / "run.json").write_text(json.dumps(make_config("evaluate", tmp_path, bare, **asked, **overrides)))
        with running(tmp_path / "pod", [command, "--config", str(tmp_path / "run.json")]) as stage:
            return stage.ends(0).message

    base = done("evaluate")
    of_tuned = {
        "evaluation__name": "tuned", "evaluation__path": str(tmp_path / "tuned"), "evaluation__adapterPath": str(artifact),
        "evaluation__reference": base["path"], "evaluation__report": {"artifact": str(artifact)},
        "evaluation__forgetting": {"base": str(bare), "path": str(tmp_path / "forgetting")},
        "evaluation__fidelity": {"path": str(tmp_path / "fidelity")},
    }  # fmt: skip
    probed = done("probe", **of_tuned)
    assert [name for name in ("forgetting", "fidelity") if probe.UNMEASURED in probed[name]] == []
    tuned = done("evaluate", **of_tuned)
    assert (tuned["metrics"]["Loss"]["n"], tuned["paired"]["low"] > 0) == (len(test_rows(folder)), True), "training helped"
    page = (tmp_path / "tuned" / "report.html").read_text()
    assert any(row.reference in page for row in test_rows(folder))
    assert ("the text" in page, ">wanted<" in page, "<pre></pre>" in page) == (True, False, False)
