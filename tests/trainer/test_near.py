"""Near-duplicates: found when most words are the same, and not because all rows share a form."""

from __future__ import annotations

import random

import pytest
from finetune_trainer.data import near
from finetune_trainer.data.formats import Row, content_digest

CHANCE = random.Random(5)
WORDS = [f"word{n}" for n in range(5000)]


def row(question: str, answer: str, system: str = "") -> Row:
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    messages = ({"role": "system", "content": system}, *messages) if system else messages
    return Row("s", 1, messages, content_digest(messages))


def text(count: int) -> list[str]:
    return CHANCE.choices(WORDS, k=count)


def changed(words: list[str], count: int) -> list[str]:
    """`words` with the last `count` replaced."""
    return [*words[: len(words) - count], *text(count)] if count else words


def found(rows: list[Row], percent: float = 80) -> dict[int, int]:
    return near.find(rows, len(rows), rows, percent)


BASE = text(60)
CHINESE = "请问你们的商店今天几点开门我想买一盏灯"
SIMILAR: dict[str, tuple[Row, Row, bool]] = {
    "other white space, case and punctuation": (row("What is it?", "A lamp, I think."), row("what  is it", "a lamp i think"), True),
    "one word of sixty": (row(" ".join(BASE), "yes"), row(" ".join(changed(BASE, 1)), "yes"), True),
    "a third of the words": (row(" ".join(BASE), "yes"), row(" ".join(changed(BASE, 20)), "yes"), False),
    "other words": (row(" ".join(text(60)), "yes"), row(" ".join(text(60)), "yes"), False),
    "the same system turn alone": (row("a b c d", "e f", " ".join(BASE)), row("g h i j", "k l", " ".join(BASE)), False),
    "another system turn alone": (row(" ".join(BASE), "yes", "be brief"), row(" ".join(BASE), "yes", "be kind"), True),
    "one character of thirty in Chinese": (
        row(CHINESE, "我们今天上午九点开门欢迎光临"), row(CHINESE, "我们今天上午九点开门欢迎光顾"), True,
    ),
    "texts of one word": (row("lamp", ""), row("chair", ""), False),
}  # fmt: skip


@pytest.mark.parametrize(("one", "other", "alike"), SIMILAR.values(), ids=SIMILAR)
def test_rows_that_differ_in(one: Row, other: Row, alike: bool) -> None:
    others = [row(" ".join(text(30)), "something else") for _ in range(200)]
    expected = {201: 0} if alike else {}
    assert found([one, *others, other]) == expected


def test_every_row_names_an_earlier_one() -> None:
    rows = [row(" ".join(changed(BASE, 1)), f"answer {' '.join(text(3))}") for _ in range(6)]
    assert found([row(" ".join(text(60)), "x"), *rows]) == dict.fromkeys(range(2, 7), 1)


def test_a_form_that_many_rows_share_makes_none_alike() -> None:
    form = " ".join(text(80))
    rows = [row(f"{form} {' '.join(text(6))}", " ".join(text(6))) for _ in range(300)]
    assert found(rows) == {}
    assert len(found([*rows, rows[7]])) == 1


def test_the_estimate_is_near_the_exact_share() -> None:
    def share(one: list[str], other: list[str]) -> float:
        a, b = ({tuple(words[i : i + 3]) for i in range(len(words) - 2)} for words in (one, other))
        return len(a & b) / len(a | b)

    errors = []
    for count in (0, 5, 10, 20, 40):
        one = text(100)
        other = changed(one, count)
        rows = [row(" ".join(words), "") for words in (one, other)]
        (matrix, _), *_ = list(near.signatures(rows, near.boilerplate([])))
        errors.append(abs(float((matrix[0] == matrix[1]).mean()) - share(one, other)))
    assert max(errors) < 0.12  # three standard errors at a half


def test_nothing_is_found_in_nothing() -> None:
    assert found([]) == {}


def test_hardly_any_pair_above_the_threshold_is_missed() -> None:
    pairs = [(words, changed(words, 2)) for words in (text(60) for _ in range(500))]
    rows = [row(" ".join(words), "") for pair in zip(*pairs, strict=True) for words in pair]
    assert len(found(rows)) >= 498
