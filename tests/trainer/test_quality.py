"""Which rows are kept and which split each goes to."""

from __future__ import annotations

import pytest
from finetune_trainer.config import SplitConfig
from finetune_trainer.data import quality
from finetune_trainer.data.formats import Row, content_digest


def row(index: int, answer: str = "an answer") -> Row:
    messages = ({"role": "user", "content": f"question {index}"}, {"role": "assistant", "content": answer})
    return Row("s", index, messages, content_digest(messages))


ROWS = [row(index) for index in range(1000)]


def test_shares_are_kept_and_no_content_is_in_two_splits() -> None:
    found = quality.split(ROWS, SplitConfig(train=80, validation=10, test=10, seed=17))
    assert {name: len(rows) for name, rows in found.items()} == pytest.approx({"train": 800, "validation": 100, "test": 100}, rel=0.3)
    assert sorted(r.row for rows in found.values() for r in rows) == list(range(1000))


def test_a_row_stays_in_its_split_whatever_else_the_data_hold() -> None:
    whole = quality.split(ROWS, SplitConfig(seed=17))
    part = quality.split(ROWS[::2], SplitConfig(seed=17))
    assert {r.row for r in part["test"]} == {r.row for r in whole["test"] if r.row % 2 == 0}


def test_another_seed_gives_another_split() -> None:
    one, two = (quality.split(ROWS, SplitConfig(seed=seed)) for seed in (17, 18))
    assert {r.row for r in one["test"]} != {r.row for r in two["test"]}


def test_a_wanted_split_gets_a_row_even_of_few() -> None:
    found = quality.split(ROWS[:5], SplitConfig(train=98, validation=1, test=1, seed=17))
    assert {name: len(rows) for name, rows in found.items()} == {"train": 3, "validation": 1, "test": 1}


REPETITIONS = {
    "prose": (" ".join(f"word{n}" for n in range(60)), 0),
    "a loop": ("the same thing again and " * 20, 95),
    "a loop that is short": ("yes yes " * 20, 0),
}


@pytest.mark.parametrize(("answer", "expected"), REPETITIONS.values(), ids=REPETITIONS)
def test_how_much_of_an_answer_repeats_itself(answer: str, expected: float) -> None:
    assert quality.repetition(answer) == pytest.approx(expected, abs=1)


def test_a_rare_label_is_in_every_split() -> None:
    labels = ["rare" if index in (3, 500, 999) else ("yes", "no")[index % 2] for index in range(1000)]
    by_row = dict(zip((r.row for r in ROWS), labels, strict=True))
    found = quality.stratified(ROWS, labels, SplitConfig(seed=17), ("test", "validation"))
    assert all("rare" in {by_row[r.row] for r in rows} for rows in found.values())
    assert sorted(r.row for rows in found.values() for r in rows) == list(range(1000))
    assert [r.row for r in found["train"]] == sorted(r.row for r in found["train"])


def test_without_labels_stratified_is_the_plain_split() -> None:
    config = SplitConfig(seed=17)
    assert quality.stratified(ROWS, [""] * 1000, config, ("test",)) == quality.split(ROWS, config, ("test",))


def test_rows_of_a_given_test_file_leave_training() -> None:
    splits = {"train": ROWS[:10], "validation": ROWS[8:12], "test": ROWS[9:11], "mix-0": ROWS[:12]}
    removed = quality.keep_apart(splits, ("test", "validation", "train", "mix-0"))
    assert [(r.row, owner) for r, owner in removed[:4]] == [(9, "test"), (10, "test"), (8, "validation"), (9, "test")]
    assert {name: [r.row for r in rows] for name, rows in splits.items()} == {
        "train": list(range(8)), "validation": [8, 11], "test": [9, 10], "mix-0": [],
    }  # fmt: skip


def test_equal_rows_count_once() -> None:
    found, repeats = quality.deduplicate([row(1), row(2), row(1), row(1)])
    assert ([r.row for r in found], [(r.row, first.row) for r, first in repeats]) == ([1, 2], [(1, 1), (1, 1)])


def test_a_sample_is_of_content_whatever_the_order() -> None:
    one, two = quality.sample(ROWS, 50, 17), quality.sample(ROWS[::-1], 50, 17)
    assert len(one) == 50
    assert {r.digest for r in one} == {r.digest for r in two}
    assert quality.sample(ROWS[:3], 50, 17) == ROWS[:3]


MINIMA = {
    "labels are a small closed set": (["yes", "no"] * 20, 1),
    "answers that all differ are prose": ([f"answer {i}" for i in range(40)], 10),
    "more than fifty answers are no closed set": ([f"label {i % 60}" for i in range(600)], 10),
    "few rows prove nothing": (["yes", "no"], 10),
}


@pytest.mark.parametrize(("found", "expected"), MINIMA.values(), ids=MINIMA)
def test_the_shortest_answer_worth_keeping(found: list[str], expected: int) -> None:
    answers = quality.Answers()
    for answer in found:
        answers.add(answer)
    assert answers.min_response == expected
