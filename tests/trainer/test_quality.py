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


def test_rows_of_a_given_test_file_leave_training() -> None:
    splits = {"train": ROWS[:10], "validation": ROWS[8:12], "test": ROWS[9:11]}
    assert quality.keep_apart(splits) == 2 + 2  # 9 and 10 leave validation; 8 and 9 leave training
    assert [r.row for r in splits["train"]] == list(range(8))
    assert [r.row for r in splits["validation"]] == [8, 11]


def test_equal_rows_count_once() -> None:
    found, left_out = quality.deduplicate([row(1), row(2), row(1), row(1)])
    assert ([r.row for r in found], left_out) == ([1, 2], 2)


MINIMA = {
    "labels are a small closed set": ([row(i, ("yes", "no")[i % 2]) for i in range(40)], 1),
    "answers that all differ are prose": ([row(i, f"answer {i}") for i in range(40)], 10),
    "more than fifty answers are no closed set": ([row(i, f"label {i % 60}") for i in range(600)], 10),
    "few rows prove nothing": ([row(0, "yes"), row(1, "no")], 10),
}


@pytest.mark.parametrize(("rows", "expected"), MINIMA.values(), ids=MINIMA)
def test_the_shortest_answer_worth_keeping(rows: list[Row], expected: int) -> None:
    assert quality.choose_min_response(rows) == expected


def test_an_answer_that_is_too_short_is_told_with_both_lengths() -> None:
    good, bad = quality.long_enough([row(1, "a long answer"), row(2, " ok ")], 10)
    assert [r.row for r in good] == [1]
    assert (bad[0].row, bad[0].reason) == (2, "the answer has 2 characters, fewer than 10")
