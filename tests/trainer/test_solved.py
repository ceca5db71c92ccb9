"""Which training rows may stand in a prompt: chosen by content, labels first, never a test row; and how many fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer import layout
from finetune_trainer.config import RunConfig
from finetune_trainer.data import prepare, quality, solved
from finetune_trainer.data.formats import Row, content_digest
from finetune_trainer.data.solved import Solved
from finetune_trainer.data.store import Record, RowStore
from transformers import AutoTokenizer

from tests.trainer.support import make_config, rows, write_rows


@pytest.fixture
def run(work: Path, tmp_path: Path, tiny_model: Path) -> Any:
    """Prepare these rows (a file's name is their revision's); the folder."""

    def prepared(values: list[Any], name: str = "a", **overrides: Any) -> Path:
        source = write_rows(tmp_path / f"{name}.jsonl", values)
        changes = {"model__path": str(work / "models" / "tiny"), "data__path": str(tmp_path / name / "data"), **overrides}
        document = make_config("prepare", tmp_path, tiny_model, source, **changes)
        prepare.main(RunConfig.model_validate(document))
        return tmp_path / name / "data"

    return prepared


def records(tmp_path: Path, answers: list[str]) -> list[Record]:
    store = RowStore(tmp_path / "rows")
    made = []
    for index, answer in enumerate(answers):
        messages = ({"role": "user", "content": f"question {index}"}, {"role": "assistant", "content": answer})
        made.append(store.add(Row("s", index, messages, content_digest(messages))))
    store.close()
    return made


def test_content_and_seed_alone_decide_the_order(tmp_path: Path) -> None:
    made = records(tmp_path, [f"answer {n}" for n in range(40)])
    found = solved.ordered(made, labels=False, seed=17)
    assert found == solved.ordered([*reversed(made), made[3]], labels=False, seed=17), "each content once, however rows stand"
    assert found == sorted(made, key=lambda row: quality.position(row.digest, 17))
    assert found != solved.ordered(made, labels=False, seed=18)


def test_each_label_comes_once_before_any_comes_twice(tmp_path: Path) -> None:
    made = records(tmp_path, ["common"] * 30 + ["rare", "rare", "single"])
    assert sorted(row.label for row in solved.ordered(made, labels=True, seed=17)[:5]) == ["common", "common", "rare", "rare", "single"]
    assert {row.label for row in solved.ordered(made, labels=True, seed=17)[:3]} == {"common", "rare", "single"}


def test_as_many_are_taken_as_fit_in_their_order() -> None:
    known = [Solved(str(n), (), tokens) for n, tokens in enumerate((40, 100, 30, 20))]
    for count, room, expected in ((2, 200, "01"), (4, 200, "0123"), (4, 90, "023"), (4, 70, "02"), (4, 19, ""), (4, -5, ""), (1, 35, "2")):
        assert "".join(one.id for one in solved.fitting(known, count, room)) == expected, (count, room)


def test_prepare_keeps_training_rows_with_the_tokens_that_they_take(run: Any, work: Path) -> None:
    folder = run(rows())
    known = solved.read(folder)
    assert known
    assert len(known) == solved.MOST
    sealed = {json.loads(line)["id"] for line in (folder / "test.jsonl").read_text().splitlines()}
    learnt = set((folder / "train-hashes.txt").read_text().split())
    found = {one.id for one in known}
    assert found <= learnt
    assert not found & sealed
    tokenizer = AutoTokenizer.from_pretrained(work / "models" / "tiny")
    for one in known:
        assert one.id == content_digest(one.messages)
        rendered = tokenizer.apply_chat_template(list(one.messages), tokenize=False)
        assert one.tokens == pytest.approx(len(tokenizer(rendered, add_special_tokens=False)["input_ids"]), abs=1)


def test_the_same_rows_are_kept_whatever_their_order_and_the_digest_of_the_data_is_without_them(run: Any) -> None:
    one, other = run(rows()), run(rows()[::-1], "b")
    assert solved.read(one) == solved.read(other)
    manifest = layout.read_manifest(one, layout.DATA_MANIFEST)
    table = manifest["files"]
    assert isinstance(table, dict)
    assert solved.FILE in table
    told = ("report.json", "report.html", solved.FILE)
    assert manifest["digest"] == layout.table_digest({name: facts for name, facts in table.items() if name not in told})


def test_rows_that_are_mixed_in_are_never_kept(run: Any, tmp_path: Path) -> None:
    general = write_rows(
        tmp_path / "general.jsonl", [{"input": f"General {n}?", "output": f"It is general answer {n}."} for n in range(60)]
    )
    mix = {"source": "pvc://sets/general.jsonl", "mount": str(general), "format": "Auto", "percent": 100}
    folder = run(rows(), data__mix=[mix])
    known = solved.read(folder)
    assert known
    assert not any("general" in one.messages[-1]["content"] for one in known)
    assert len((folder / "train-hashes.txt").read_text().split()) > 64, "they are trained on"


def test_what_a_system_turn_takes_is_known(run: Any, work: Path) -> None:
    said = "You name things, briefly."
    values = [{"system": said, "input": row["instruction"], "output": row["output"]} for row in rows()]
    known, plain = solved.read(run(values)), solved.read(run(rows(), "b"))
    assert known
    assert plain
    tokenizer = AutoTokenizer.from_pretrained(work / "models" / "tiny")
    assert {one.system for one in known} == {len(tokenizer(said, add_special_tokens=False)["input_ids"])}
    assert {one.system for one in plain} == {0}


def test_of_a_pair_the_preferred_answer_is_kept(run: Any) -> None:
    values = [{"prompt": row["instruction"], "chosen": row["output"], "rejected": f"No {n}."} for n, row in enumerate(rows())]
    known, single = solved.read(run(values, method__objective="DPO")), solved.read(run(rows(), "b"))
    assert known
    assert known == single, "the conversation alone, with the tokens that it takes"


def test_a_row_that_was_cut_is_not_kept(run: Any) -> None:
    long = [{"instruction": f"Long {n}", "output": " ".join(f"word{n}x{m}" for m in range(60))} for n in range(30)]
    cut = {"onTooLong": "Truncate", "nearDuplicates": "Keep"}
    folder = run([*rows(40), *long], data__quality=cut, training__maxSequenceLength=100)
    known = solved.read(folder)
    assert known
    assert all(one.messages[0]["content"].startswith("Name the") for one in known)
    assert json.loads((folder / "report.json").read_text())["rows"]["tooLong"] == 30


UNUSABLE: dict[str, list[dict[str, Any]]] = {
    "plain texts": [{"text": f"A text about lamp number {n}, which is long enough."} for n in range(20)],
    "conversations that an answer opens": [
        {"messages": [{"role": role, "content": f"{role} {n}"} for role in ("assistant", "user", "assistant")]} for n in range(20)
    ],
}


@pytest.mark.parametrize("values", UNUSABLE.values(), ids=UNUSABLE)
def test_what_can_stand_in_no_prompt_is_not_kept(values: list[dict[str, Any]], run: Any) -> None:
    assert solved.read(run(values, data__quality={"nearDuplicates": "Keep"})) == []


def test_labels_of_the_data_come_in_turn(run: Any) -> None:
    labels = ["billing"] * 50 + ["return"] * 5 + ["praise"] * 5
    values = [
        {"input": f"Message {n}: {row['instruction']}", "output": label}
        for n, (row, label) in enumerate(zip(rows(60), labels, strict=True))
    ]
    known = solved.read(run(values, data__quality={"nearDuplicates": "Keep"}))
    assert known
    assert {one.messages[-1]["content"] for one in known[:3]} == {"billing", "return", "praise"}


def test_a_folder_of_an_older_image_has_none(tmp_path: Path) -> None:
    assert solved.read(tmp_path) is None
