"""Custom: what is handed to an image of the user's, and what of its file is believed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from finetune_trainer.evaluate import custom
from finetune_trainer.evaluate.rows import TestRow
from finetune_trainer.exits import UserError

ONE, TWO = (TestRow(name, ({"role": "user", "content": f"Which of {name}?"},), "this") for name in ("one", "two"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As the image finds it: one row was answered, the other refused."""
    custom.hand_out(tmp_path, [ONE, TWO], {"one": "that\n“so”", "two": None})
    return tmp_path


def scored(folder: Path, *lines: object) -> custom.Scores:
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    (folder / "out" / "scores.jsonl").write_text(text)
    return custom.Scores(folder)


def test_rows_that_were_answered_are_handed_out_with_what_is_wanted(folder: Path) -> None:
    (line,) = (folder / "in" / "rows.jsonl").read_text().splitlines()
    prompt = [{"role": "user", "content": "Which of one?"}]
    assert json.loads(line) == {"id": "one", "prompt": prompt, "reference": "this", "answer": "that\n“so”"}
    assert {path.name for path in folder.iterdir()} == {"in", "out", "tmp"}


def test_scores_come_in_any_order_with_notes(folder: Path) -> None:
    found = scored(folder, {"id": "two", "score": 1}, "", {"id": "one", "score": 0.25, "note": "n" * 300, "more": []})
    assert found.score("that", ONE) == (0.25, "n" * 200)
    assert found.score("that", TWO) == (1.0, "")


BROKEN = {
    "no line for a row": ([{"id": "two", "score": 1}], "it has no line for row one, which was answered"),
    "no JSON": (["{"], "line 1 is no JSON: Expecting property name"),
    "JSON that nests without an end": (["[" * 3000], "line 1 is no JSON: maximum recursion depth"),
    "a list": ([[]], "line 1 has no id of a row"),
    "an id that is no text": ([{"id": 1, "score": 1}], "line 1 has no id of a row"),
    "no score": ([{"id": "one"}], "line 1: its score is None, no number from 0 to 1"),
    "a truth": ([{"id": "one", "score": True}], "line 1: its score is True, no number"),
    "no number": (['{"id": "one", "score": NaN}'], "line 1: its score is nan, no number"),
    "a number that no float holds": (['{"id": "one", "score": 1' + "0" * 400 + "}"], "line 1: its score is 1000000"),
    "percent": ([{"id": "two", "score": 1}, {"id": "one", "score": 50}], "line 2: its score is 50, no number from 0 to 1"),
    "a row twice": ([{"id": "one", "score": 1}, {"id": "one", "score": 0}], "line 2 scores row one a second time"),
    "a line without an end": ([{"id": "one", "score": 1, "note": "n" * 5000}], "line 1 is longer than 4096 bytes"),
}


@pytest.mark.parametrize(("lines", "why"), BROKEN.values(), ids=BROKEN)
def test_a_file_that_is_wrong_is_told_by_its_line(lines: list[object], why: str, folder: Path) -> None:
    with pytest.raises(UserError, match="the scores of metric Custom: ") as told:
        scored(folder, *lines).score("that", ONE)
    assert told.value.reason == "MetricInvalid"
    assert why in str(told.value)


def test_nothing_but_a_plain_file_of_its_own_is_read(folder: Path) -> None:
    place = folder / "out" / "scores.jsonl"
    with pytest.raises(UserError, match="it cannot be read: No such file"):
        custom.Scores(folder).score("that", ONE)
    place.symlink_to(folder / "in" / "rows.jsonl")
    with pytest.raises(UserError, match="it cannot be read: Too many levels of symbolic links"):
        custom.Scores(folder).score("that", ONE)
    place.unlink()
    os.mkfifo(place)
    with pytest.raises(UserError, match="it is no plain file"):
        custom.Scores(folder).score("that", ONE)


def test_half_a_surrogate_pair_in_a_note_is_written_down(folder: Path) -> None:
    score, note = scored(folder, '{"id": "one", "score": 0, "note": "cut \\ud83d"}').score("that", ONE)
    assert (score, note) == (0.0, "cut ?")


def test_rows_that_repeat_are_handed_out_once(tmp_path: Path) -> None:
    custom.hand_out(tmp_path, [ONE, ONE], {"one": "that"})
    (line,) = (tmp_path / "in" / "rows.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "one"
