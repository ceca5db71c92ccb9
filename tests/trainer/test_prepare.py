"""Stage prepare on whole files: splits that stay apart, mixes, bad input by row, and what a second revision takes over."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from finetune_trainer import layout
from finetune_trainer.config import RunConfig
from finetune_trainer.data import arrays, encoding, loading, prepare
from finetune_trainer.data.templates import ChatEncoder
from finetune_trainer.exits import UserError
from transformers import AutoTokenizer

from tests.trainer.support import make_config, rows, write_rows

PROSE = "the old clock in the hall of the house by the river strikes nine times every evening before the lamps go out and"


@pytest.fixture
def run(work: Path, tmp_path: Path, tiny_model: Path) -> Any:
    """Prepare these rows; the folder and the result."""

    def prepared(values: list[Any], **overrides: Any) -> tuple[Path, dict[str, Any]]:
        source = write_rows(tmp_path / "rows.jsonl", values)
        document = make_config("prepare", tmp_path, tiny_model, source, **{"model__path": str(work / "models" / "tiny"), **overrides})
        return Path(document["data"]["path"]), dict(prepare.main(RunConfig.model_validate(document)))

    return prepared


def source(path: Path, values: list[Any], **more: Any) -> dict[str, Any]:
    path.parent.mkdir(exist_ok=True)
    return {"source": f"pvc://sets/{path.name}", "mount": str(write_rows(path, values)), "format": "Auto", **more}


def alike(index: int) -> dict[str, str]:
    """Rows that differ from one another in a word of forty."""
    return {"instruction": f"Go on with this: {PROSE}", "output": f"{PROSE} nobody is awake but number{index}"}


def kept_rows(folder: Path, work: Path) -> dict[str, list[str]]:
    tokenizer = AutoTokenizer.from_pretrained(work / "models" / "tiny")
    found = {}
    for split in ("train", "validation"):
        data = arrays.load(folder, split)
        found[split] = [str(tokenizer.decode(data.row(index)[0])) for index in range(len(data))]
    found["test"] = [json.loads(line)["reference"] for line in (folder / "test.jsonl").read_text().splitlines()]
    return found


def test_long_rows_are_encoded_few_at_a_time(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory grows with the tokens of a batch: 512 rows of 100 KB took many GiB."""
    encode_all, counts = ChatEncoder.encode_all, list[int]()

    def counted(encoder: ChatEncoder, several: Any, **more: Any) -> Any:
        counts.append(len(several))
        return encode_all(encoder, several, **more)

    monkeypatch.setattr(encoding, "BATCH_BYTES", 1000)
    monkeypatch.setattr(ChatEncoder, "encode_all", counted)
    run(rows())
    assert sum(counts) == 64
    assert 1 < max(counts) < 12


def test_a_row_with_a_control_token_is_left_out_though_it_is_among_the_first_few(run: Any, tmp_path: Path) -> None:
    odd = {"instruction": "Name the last token.", "output": "It is <|im_end|> as ever."}
    _, result = run(rows(60), data__test=source(tmp_path / "test.jsonl", [odd, *rows(64)[60:]]))
    assert (result["rows"]["invalid"], result["rows"]["test"]) == (1, 4)


def test_near_duplicates_are_left_out_and_told_with_their_like(run: Any) -> None:
    folder, result = run([*rows(), *(alike(index) for index in range(5))], training__maxSequenceLength=1024)
    assert (result["rows"]["nearDuplicate"], result["rows"]["invalid"]) == (4, 0)
    (group,) = json.loads((folder / "report.json").read_text())["leftOut"]
    assert (group["kind"], group["count"], group["examples"][0]["row"]) == ("NearDuplicate", 4, 66)
    assert group["examples"][0]["reason"] == "near-duplicate: of row 65 of configmap://rows/train.jsonl"


def test_near_duplicates_stay_where_that_is_wanted(run: Any) -> None:
    values = [*rows(), *(alike(index) for index in range(5))]
    _, result = run(values, training__maxSequenceLength=1024, data__quality={"nearDuplicates": "Keep"})
    assert result["rows"]["nearDuplicate"] == 0
    assert sum(result["rows"][name] for name in ("train", "validation", "test")) == 69


def test_what_is_like_a_given_test_row_leaves_validation_training_and_mixes(run: Any, work: Path, tmp_path: Path) -> None:
    folder, result = run(
        [*rows(40), alike(0)],
        training__maxSequenceLength=1024,
        data__test=source(tmp_path / "test.jsonl", [alike(1), *rows(64)[60:]]),
        data__validation=source(tmp_path / "validation.jsonl", [alike(2), *rows(64)[50:60]]),
        data__mix=[source(tmp_path / "mix.jsonl", [alike(3), *rows(64)[44:50]], percent=100)],
    )
    assert result["rows"]["nearDuplicate"] == 3
    found = kept_rows(folder, work)
    assert [sum("number" in text for text in found[name]) for name in ("test", "validation", "train")] == [1, 0, 0]


def test_no_two_variants_of_a_row_are_in_different_splits(run: Any, work: Path) -> None:
    def variant(number: int, word: str) -> dict[str, str]:
        own = " ".join(f"w{number}x{place}" for place in range(30))
        return {"instruction": f"Go on: {own}", "output": f"{own} and {word} at the end"}

    values = [variant(number, word) for word in ("this", "that", "more") for number in range(40)]
    folder, result = run(values, training__maxSequenceLength=1024)
    assert result["rows"]["nearDuplicate"] == 80
    found = list(chain.from_iterable(kept_rows(folder, work).values()))
    assert sorted(int(re.findall(r"w(\d+)x", text)[0]) for text in found) == list(range(40))


MIXES = {
    "a share of the training rows": (25, 12, []),
    "all there is, with a warning": (100, 16, ["data.mix: pvc://sets/mix.jsonl has 16 rows that can be used, 50 were asked for"]),
}


@pytest.mark.parametrize(("percent", "count", "warnings"), MIXES.values(), ids=MIXES)
def test_a_mix_adds(percent: int, count: int, warnings: list[str], run: Any, work: Path, tmp_path: Path) -> None:
    mix = [{"prompt": f"Say number {n} in words.", "completion": f"It is number {'one ' * (n % 5)}{n}, certainly."} for n in range(16)]
    folder, result = run(rows(60), data__mix=[source(tmp_path / "mix.jsonl", mix, percent=percent)])
    own = result["rows"]["train"] - count
    assert own == 50
    assert sum("certainly" in text for text in kept_rows(folder, work)["train"]) == count
    assert [warning for warning in result["warnings"] if "mix" in warning] == warnings
    assert "certainly" not in (folder / "test.jsonl").read_text()


SPOILT = {"a role that is none": "robot", "half of a surrogate pair": "\\ud800"}


@pytest.mark.parametrize("role", SPOILT.values(), ids=SPOILT)
def test_what_is_shown_of_a_row_that_is_left_out_has_no_personal_data_where_they_are_blacked_out(role: str, run: Any) -> None:
    bad = f'{{"messages": [{{"role": "{role}", "content": "I am jane.doe@example.org"}}], "owner": "x@y.org"}}'
    folder, result = run([*rows(30), bad], data__quality={"personalData": "Redact"})
    assert result["rows"]["invalid"] == 1
    for page in ("report.json", "report.html"):
        assert "I am [email]" in (folder / page).read_text()
        assert not any(address in (folder / page).read_text() for address in ("jane.doe", "x@y.org"))


EMPTY = {"instruction": "Say nothing.", "output": " "}
SAME = {"instruction": "Say it.", "output": "The same again."}
BAD: dict[str, tuple[list[Any], dict[str, Any], str, str]] = {
    "broken JSON": ([*rows(10), '{"instruction": "a'], {}, "TooManyInvalidRows", r"1 of 11 rows .* row 11: not JSON"),
    "a role that is none": (
        [{"messages": [{"role": "robot", "content": "x"}, {"role": "assistant", "content": "y"}]}], {}, "TooManyInvalidRows",
        r"row 1: turn 1 of messages has role 'robot', not one of system, user, assistant",
    ),
    "an empty assistant turn": ([*rows(10), EMPTY], {}, "TooManyInvalidRows", r"row 11: turn 2 \(assistant\) is empty"),
    "mixed formats": (
        [*rows(10), {"prompt": "a", "completion": "b"}], {}, "TooManyInvalidRows",
        "row 11: it is PromptCompletion, but the file is InstructionInputOutput: keep one format a file",
    ),
    "prompts that are too long": (
        [{"instruction": f"{n} " + "word " * 200, "output": f"a single word {n}"} for n in range(10)],
        {"data__quality": {"nearDuplicates": "Keep"}},
        "NoTrainingRows", "the prompt alone is too long: 1,0.. tokens, more than training.maxSequenceLength 256",
    ),
    "the same row again and again": (
        [SAME] * 50, {}, "TestSplitEmpty", "of 50 rows read 0 are invalid, 49 repeat another and 1 are left; .* row 2: a repetition: ",
    ),
    "a sign of the template in the answers": (
        [{**row, "output": f"{row['output']}<|im_end|>"} for row in rows(20)], {}, "MaskNotProven",
        r"row \d+ of .*: its answer holds '<\|im_end\|>', which the model reads as a control token",
    ),
    "an answer that goes round in circles": (
        [*rows(10), {"instruction": "Go on.", "output": "and so on it goes " * 20}], {}, "TooManyInvalidRows",
        "row 11: the answer repeats itself: 95 % of its trigrams were there before, more than 80 %",
    ),
    "one row": ([SAME], {}, "TestSplitEmpty", "of 1 rows read .* 1 are left; there are too few rows"),
    "no known field": ([{"question": "a"}], {}, "FormatUnknown", "configmap://rows/train.jsonl: no known format .*question"),
    "no row": ([], {}, "DataEmpty", "configmap://rows/train.jsonl has no rows"),
    "personal data that are refused": (
        [*rows(10), {"instruction": "Who?", "output": "ask a@example.org"}], {"data__quality": {"personalData": "Fail"}},
        "PersonalDataFound", "1 rows hold e-mail addresses, the first is row 11 of configmap://rows/train.jsonl",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("values", "overrides", "reason", "words"), BAD.values(), ids=BAD)
def test_data_are_refused_with_file_row_and_fix_for(
    values: list[Any], overrides: dict[str, Any], reason: str, words: str, run: Any, tmp_path: Path
) -> None:  # fmt: skip
    with pytest.raises(UserError) as found:
        run(values, **overrides)
    assert found.value.reason == reason
    assert re.search(words, str(found.value.message)), found.value.message
    assert "configmap://rows/train.jsonl" in found.value.message
    assert found.value.fix
    assert {path.name for path in (tmp_path / "data").iterdir() if path.suffix != ".lock"} <= {"cache"}


def test_a_test_file_of_which_nothing_can_be_used_is_refused(run: Any, tmp_path: Path) -> None:
    test = source(tmp_path / "test.jsonl", [{"instruction": "word " * 200, "output": "a word"}])
    with pytest.raises(UserError, match=r"none of the 1 test rows can be used: pvc://sets/test.jsonl row 1: the prompt alone is too long"):
        run(rows(), data__test=test)


def test_a_test_file_without_rows_is_told(run: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pvc://sets/test.jsonl: the test split would be empty: it has no rows"):
        run(rows(), data__test=source(tmp_path / "test.jsonl", []))


def test_a_tokenizer_without_a_template_is_refused_before_anything_is_read_where_a_format_that_needs_one_is_named(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(prepare, "load_tokenizer", lambda *_: SimpleNamespace(chat_template=None))
    monkeypatch.setattr(prepare, "find_files", lambda *_: pytest.fail("data were looked for"))
    with pytest.raises(UserError, match=r"no chat template \(neither chat_template\.jinja nor tokenizer_config\.json has one\)"):
        run(rows(), data__train__format="InstructionInputOutput")


def test_a_template_that_is_none_is_refused_before_anything_is_read(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    load = prepare.load_tokenizer

    def broken(*arguments: Any) -> Any:
        tokenizer: Any = load(*arguments)
        tokenizer.chat_template = "{% for message in messages %}"
        return tokenizer

    monkeypatch.setattr(prepare, "load_tokenizer", broken)
    monkeypatch.setattr(prepare, "find_files", lambda *_: pytest.fail("data were looked for"))
    with pytest.raises(UserError, match="the model's chat template is wrong in line 1"):
        run(rows())


def test_a_pair_that_redaction_makes_equal_is_left_out_and_counted(run: Any) -> None:
    pairs = [{"prompt": f"Say {n}.", "chosen": f"It is {n}, of course.", "rejected": f"I do not know {n}."} for n in range(40)]
    equal = {"prompt": "Who sells it?", "chosen": "Ask a@example.org today.", "rejected": "Ask b@example.org today."}
    folder, result = run(
        [*pairs, equal],
        method__objective="DPO",
        data__quality={"personalData": "Redact", "nearDuplicates": "Keep", "minResponseCharacters": 1},
    )
    assert result["rows"]["invalid"] == 1
    reason = "without their personal data chosen and rejected are the same answer"
    assert result["invalid"] == [{"source": "configmap://rows/train.jsonl", "row": 41, "reason": reason}]
    assert reason in (folder / "report.html").read_text()


def test_no_test_split_is_needed_where_none_was_asked_for(run: Any) -> None:
    _, result = run(rows(20), data__split={"train": 100, "validation": 0, "test": 0, "seed": 17})
    assert result["rows"]["test"] == 0


def test_tokens_that_the_model_has_no_place_for_are_refused(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = prepare._outline
    monkeypatch.setattr(prepare, "_outline", lambda config: replace(real(config), vocabulary=200))
    with pytest.raises(
        UserError, match=r"row \d+ of configmap://rows/train.jsonl: token \d+ .* outside the model's vocabulary of 200"
    ) as found:
        run(rows())
    assert found.value.fix.startswith("Tokenizer and weights do not belong together")


def test_what_to_think_of_before_it_trains_is_told_with_the_methods_side_by_side(run: Any) -> None:
    folder, result = run(rows(), compute__gpusPerNode=1, compute__accelerator="h100", compute__acceleratorMemory=2**34, method__type="Full")
    assert [item["code"] for item in result["advice"]] == ["FewRows", "FewTestRows", "FullForFewRows"]
    made = json.loads((folder / layout.DATA_MANIFEST).read_text())["methods"]
    assert [(option["method"], option["asked"], option["ranks"]) for option in made] == [
        ("Full", True, 1), ("LoRA", False, 1), ("QLoRA", False, 1), ("PromptTuning", False, 1),
    ]  # fmt: skip
    assert made[0]["memory"] == result["estimate"]["memoryBytes"] > made[1]["memory"]
    page = (folder / "report.html").read_text()
    assert "below 100 good ones tuning mostly teaches form" in page
    assert "Methods for this model and these data" in page


def test_a_rows_json_schema_is_sealed_with_it(run: Any) -> None:
    folder, _ = run([{**row, "json_schema": {"type": "string", "title": row["output"]}} for row in rows()])
    sealed = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    assert sealed
    assert [json.loads(line["schema"])["title"] for line in sealed] == [line["reference"] for line in sealed]


def test_labels_that_training_lacks_are_told(run: Any, tmp_path: Path) -> None:
    values = [{"input": f"{word} thing {n}", "output": ("good", "bad")[n % 2]} for n, word in enumerate(("red", "blue", "big", "odd") * 15)]
    _, result = run(values, data__test=source(tmp_path / "test.jsonl", [{"input": "any other thing", "output": "awful"}] * 4))
    assert "labels of the test split that no training row has: awful" in result["warnings"]


def test_redacted_rows_are_what_is_learnt(run: Any, work: Path) -> None:
    values = [*rows(40), *({"instruction": f"Who sells the lamp {n}?", "output": f"Ask shop{n}@example.org about it."} for n in range(10))]
    folder, result = run(values, data__quality={"personalData": "Redact", "nearDuplicates": "Keep"})
    text = " ".join(list(chain.from_iterable(kept_rows(folder, work).values())))
    assert text.count("[email]") == 10
    assert "example.org" not in text
    assert any("10 rows hold e-mail addresses (redacted)" in warning for warning in result["warnings"])


FRENCH = {
    "instruction": "Bonjour, comment changer mon mot de passe ?",
    "output": "Ouvrez les paramètres du compte et choisissez un nouveau.",
}


def test_rows_in_other_languages_are_counted_and_shown(run: Any) -> None:
    folder, result = run([*rows(), FRENCH], data__quality={"languages": ["en", "de"]})
    assert (result["rows"]["read"], result["rows"]["invalid"], result["rows"]["nearDuplicate"]) == (65, 1, 0)
    (group,) = json.loads((folder / "report.json").read_text())["leftOut"]
    assert (group["kind"], group["reason"], group["count"]) == ("Invalid", "turn … (user) is in another language", 1)
    assert group["examples"][0]["text"].endswith('choisissez un nouveau."}')
    assert "Ouvrez les param" in (folder / "report.html").read_text()


def test_the_page_of_real_rows_marks_what_the_model_learns(run: Any) -> None:
    folder, _ = run([*rows(), {"instruction": "<b>bold</b>", "output": "plain <i>text</i>"}, "{broken"])
    report = json.loads((folder / "report.json").read_text())
    assert len(report["examples"]) == 10
    spoken = ["".join(part["text"] for part in row["parts"] if part["supervised"]) for row in report["examples"]]
    assert all(re.fullmatch(r"(This \w+ is .*|plain <i>text</i>)<\|im_end\|>", text) for text in spoken), spoken
    page = (folder / "report.html").read_text()
    assert page.count("<mark>") == 1 + 10
    assert "<b>bold" not in page
    assert "row 66: not JSON" in page


def another_revision(config: dict[str, Any], name: str) -> RunConfig:
    data = {**config["data"], "path": str(Path(config["data"]["path"]).with_name(name))}
    return RunConfig.model_validate({**config, "data": data, "finetune": {**config["finetune"], "revision": name}})


@pytest.fixture
def first(work: Path, tmp_path: Path, tiny_model: Path) -> dict[str, Any]:
    """A configuration that was prepared."""
    document = make_config(
        "prepare", tmp_path, tiny_model, write_rows(tmp_path / "rows.jsonl", rows()), model__path=str(work / "models" / "tiny")
    )
    prepare.main(RunConfig.model_validate(document))
    return document


def test_a_revision_that_trains_otherwise_takes_the_data_over(first: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "load", lambda *_: pytest.fail("prepared again"))
    config = another_revision({**first, "training": {**first["training"], "epochs": 7, "tokensPerStep": 600}}, "2b2b2b2b")
    result = prepare.main(config)
    assert (result["totalSteps"] // result["stepsPerEpoch"], result["tokensPerStep"]) == (7, 600)
    one, two = Path(first["data"]["path"]), Path(first["data"]["path"]).with_name("2b2b2b2b")
    assert (one / "train.tokens.npy").samefile(two / "train.tokens.npy")
    assert not (one / "report.html").samefile(two / "report.html")
    assert "revision 2b2b2b2b" in (two / "report.html").read_text()
    layout.verify(one, layout.DATA_MANIFEST)
    layout.verify(two, layout.DATA_MANIFEST)
    assert np.array_equal(arrays.load(one, "train").tokens, arrays.load(two, "train").tokens)


def _more_rows(config: dict[str, Any]) -> dict[str, Any]:
    write_rows(Path(config["data"]["train"]["mount"]), rows(60))
    return config


OTHERWISE = {
    "the file holds other rows": _more_rows,
    "rows may be shorter": lambda c: {**c, "data": {**c["data"], "quality": {**c["data"]["quality"], "minResponseCharacters": 5}}},
}


@pytest.mark.parametrize("change", OTHERWISE.values(), ids=OTHERWISE)
def test_rows_are_read_anew_where(change: Any, first: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    real = loading.load
    monkeypatch.setattr(loading, "load", lambda *arguments: calls.append(1) or real(*arguments))
    prepare.main(another_revision(change(first), "2b2b2b2b"))
    assert calls == [1]


def test_a_damaged_folder_is_not_taken_over(first: dict[str, Any]) -> None:
    tokens = Path(first["data"]["path"]) / "train.tokens.npy"
    tokens.write_bytes(tokens.read_bytes()[:-1] + b"\x07")
    prepare.main(another_revision(first, "2b2b2b2b"))
    layout.verify(tokens.parent.with_name("2b2b2b2b"), layout.DATA_MANIFEST)


def test_nothing_but_prepared_data_and_what_the_next_revision_may_use_is_left_on_the_volume(first: dict[str, Any]) -> None:
    data = Path(first["data"]["path"]).parent
    assert sorted(path.name for path in data.iterdir()) == ["1f2e3d4c", "cache"]
    assert sorted(path.name for path in (data / "cache").iterdir()) == ["downloads", "records", "rows", "tokens"]
    assert [path for name in ("downloads", "records") for path in (data / "cache" / name).iterdir()] == []
