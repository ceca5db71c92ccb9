"""How fast a server answers, and what the page says of what that costs. (The figures themselves: tests/unit/operator, tests/contract.)"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.config import EconomicsConfig, EvaluationConfig, ServerConfig
from finetune_trainer.evaluate import charts, report, worth
from finetune_trainer.evaluate.answers import Kept
from finetune_trainer.evaluate.ask import _fingerprint
from finetune_trainer.evaluate.client import Reply, _tokens
from finetune_trainer.evaluate.throughput import Answering, measured, read

from tests.trainer import evaluations as made
from tests.trainer.test_evaluation_report import page, visible
from tests.trainer.test_report import EVIL

A = Reply("yes", "", 100, 20, 1.5)
REPLIES: dict[str, tuple[list[Reply], Answering | None]] = {
    "two answers": ([A, Reply("", "", 50, 1, 0.25)], Answering(2, 1.75, 150, 21, 16)),
    "one that the server refused takes its time": ([A, Reply(None, "HTTP 400", seconds=0.5)], Answering(1, 2.0, 100, 20, 16)),
    "one without a count": ([A, Reply("no")], None),
    "none that was answered": ([Reply(None, "HTTP 400", seconds=0.5)], None),
    "none at all": ([], None),
    "no time that is known": ([Reply("yes", "", 100, 20)], None),
    "nothing generated": ([Reply("", "", 100, 0, 1.0)], None),
}


@pytest.mark.parametrize("case", REPLIES)
def test_throughput_is_of_all_that_was_answered_or_is_not_known(case: str) -> None:
    replies, found = REPLIES[case]
    assert measured(replies, 16) == found


@pytest.mark.parametrize(
    ("document", "tokens"),
    [
        ({"usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}}, (7, 2)),
        ({"usage": {"prompt_tokens": "7", "completion_tokens": -2}}, (None, None)),
        ({"usage": None}, (None, None)),
        ({}, (None, None)),
        ([], (None, None)),
    ],
)
def test_tokens_are_those_that_the_server_counts(document: Any, tokens: tuple[int | None, int | None]) -> None:
    assert _tokens(document) == tokens


def test_an_interrupted_evaluation_keeps_tokens_and_time(tmp_path: Path) -> None:
    folder = tmp_path / "tuned"
    first = Kept(folder, "f")
    first.add("1", A)
    first.close()
    second = Kept(folder, "f")
    second.add("2", Reply("no", "", 10, 2, 0.5))
    second.close()
    third = Kept(folder, "f")
    third.close()
    assert third.replies == second.replies == {"1": A, "2": Reply("no", "", 10, 2, 0.5)}
    assert measured(third.replies.values(), 4) == Answering(2, 2.0, 110, 22, 4)


def test_answers_that_an_older_trainer_kept_are_taken_up_without_a_throughput(tmp_path: Path) -> None:
    lines = [{"fingerprint": "f"}, {"id": "1", "answer": "yes", "error": ""}]
    (tmp_path / ".tuned@f.answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    kept = Kept(tmp_path / "tuned", "f")
    kept.close()
    assert kept.replies == {"1": Reply("yes")}
    assert measured(kept.replies.values(), 16) is None


ANSWERING = Answering(100, 100.0, 10_000, 5_000, 16)
STATED: dict[str, Any] = {
    "pods": 2, "mostPods": 2, "podHour": 3, "paidOnce": 11_240, "currency": "USD", "missing": [],
    "alternative": {"name": "big-api", "inputPrice": 10, "outputPrice": 30}, "traffic": {"requestsPerMonth": 4_000_000},
}  # fmt: skip


def terms(**changes: Any) -> EconomicsConfig:
    return EconomicsConfig.model_validate({**STATED, **changes})


def told(answering: Answering | None = ANSWERING, **changes: Any) -> str:
    return visible(report.render(made.report(economics=terms(**changes), answering=answering)))


def test_the_page_sets_both_beside_each_other_and_marks_where_they_are_even() -> None:
    words = told()
    for text in (
        "2.0 monthsuntil it is paid back", "this modelbig-api", "pods that are counted2 at 3.00 USD an hour",
        "a month, for the stated traffic4,380.00 USD10,000.00 USD", "a million tokens, at the stated traffic7.30 USD16.67 USD",
        "a million tokens, at full use5.56 USD", "400.0 million + 200.0 million", "these pods could do788.4 million",
        "cheaper, with 2 pods, at so many tokens a monthfrom 262.8 million to 788.4 million", "saved a month5,620.00 USD",
        "what the spec adds11,240.00 USD",
        "2.0 months, 1,200.0 million tokens", "paid by then, over 12 months, in USD; even after 2.0 months (dashed)",
        "this model: paid once, and serving", "test rows: 100 in 100.0 s with at most 16 open at once",
        "100.0 tokens of prompts and 50.0 of answers a second",
        "A month has 730 hours", "of when the Job was made that wrote this page; status.economics has today's",
    ):  # fmt: skip
        assert text in words, text


def test_what_never_pays_back_says_so_and_marks_nothing() -> None:
    words = told(traffic={"requestsPerMonth": 1000})
    assert "neveruntil it is paid back" in words
    assert "saved a month-4,377.50 USD" in words
    assert "dashed)" not in words.split("What it is worth")[1]


@pytest.mark.parametrize(
    ("price", "answering", "words"),
    [
        (6, ANSWERING, "with 1 pod, at so many tokens a monthfrom 365.0 million to 394.2 million"),
        (6, None, "at so many tokens a monthfrom 365.0 million on"),
        (5, ANSWERING, "at so many tokens a monthnever while no busier than in the evaluation"),
        (0, ANSWERING, "at so many tokens a monthnever"),
    ],
)
def test_where_it_is_cheaper_is_said_as_far_as_it_is_known(price: float, answering: Answering | None, words: str) -> None:
    said = told(answering, pods=1, alternative={"name": "big-api", "inputPrice": price, "outputPrice": price}, traffic={
        "inputTokensPerMonth": 270_000_000, "outputTokensPerMonth": 135_000_000,
    })  # fmt: skip
    assert words in said
    assert ("no busier" in said) == ("no busier" in words)


def test_what_is_not_known_is_said_and_not_drawn() -> None:
    words = told(None, podHour=None, paidOnce=None, traffic=None, missing=["set economics.podHourlyPrice"])
    assert "set economics.podHourlyPrice" in words
    assert worth.NOT_MEASURED in words
    for text in ("0.00 USD", "paid back", "paid by then", "None", "nan", "Full use is"):
        assert text not in words.split("What it is worth")[1], text


def test_what_another_server_did_is_not_priced() -> None:
    one, other = ServerConfig(accelerator="h100", accelerators=1, runtime="vLLM"), ServerConfig(runtime="Transformers")
    known = measured([A], 16, one)
    assert known == Answering(1, 1.5, 100, 20, 16, "h100", 1, "vLLM")
    for server, priced in ((one, True), (other, False), (one.model_copy(update={"accelerators": 2}), False), (None, False)):
        words = visible(report.render(made.report(economics=terms(traffic=None), answering=known, server=server)))
        assert ("full use" in words, worth.MEASURED_ELSEWHERE in words) == (priced, not priced)
        assert "answered by one server1 in 1.5 s" in words


@pytest.mark.parametrize("known", [ANSWERING, Answering(1, 1.5, 100, 20, 16, "h100", 1, "vLLM")])
def test_what_a_newer_trainer_says_besides_is_passed_over(known: Answering) -> None:
    assert read({"answering": {**known.told(), "firstTokenSeconds": 0.2}}) == read({"answering": known.told()}) == known
    assert read({}) is read({"answering": None}) is None


def test_what_one_server_answered_is_not_taken_up_beside_another() -> None:
    asked = {"name": "tuned", "path": "/work/e", "metrics": [{"type": "ExactMatch"}]}
    one = {"accelerators": 1, "runtime": "vLLM"}
    servers = (None, {"runtime": "vLLM"}, one, {**one, "accelerator": "h100"})
    assert len({_fingerprint(Path("m"), EvaluationConfig.model_validate({**asked, "server": server}), []) for server in servers}) == 4


def test_what_is_paid_back_within_days_is_not_paid_back_in_no_time() -> None:
    assert "less than 0.1 monthsuntil it is paid back" in told(paidOnce=1)


def test_more_pods_than_the_spec_has_are_said() -> None:
    assert "The traffic needs 4 pods, and the spec has at most 2: 4 are counted." in told(traffic={"requestsPerMonth": 10_000_000})
    assert "at most 4" not in told(traffic={"requestsPerMonth": 10_000_000}, mostPods=4)


def test_nothing_is_shown_where_nothing_is_compared() -> None:
    words = visible(report.render(made.report(answering=ANSWERING)))
    assert "answered by one server100 in 100.0 s with at most 16 open at once" in words
    assert "What it is worth" not in words
    assert "paid back" not in words


def test_no_name_becomes_markup() -> None:
    evil = terms(alternative={"name": EVIL, "inputPrice": 1, "outputPrice": 1}, currency=EVIL, missing=[EVIL])
    text = report.render(made.report(economics=evil, answering=ANSWERING))
    assert page(text).tags.isdisjoint({"script", "img", "link", "iframe", "a", "object"})
    assert EVIL in visible(text)


@pytest.mark.parametrize(("months", "drawn"), [(0.1, 12), (7, 12), (20, 30), (400, 120)])
def test_the_drawing_goes_beyond_the_break_even_within_ten_years(months: float, drawn: int) -> None:
    words = told(paidOnce=5620 * months)
    assert f"over {drawn} months" in words
    assert (f"even after {months:.1f} months" in words) == (months < drawn)


def test_lines_begin_at_what_was_paid_once_and_meet_at_the_mark() -> None:
    text = charts.cumulated([("own", 100.0, 10.0), ("other", 0.0, 30.0)], 12, 5.0)
    own, other = ([tuple(map(float, at.split(","))) for at in part.split('"')[0].split()] for part in text.split('points="')[1:])
    mark = float(text.split('class="asked" x1="')[1].split('"')[0])

    def height(line: list[tuple[float, ...]]) -> float:
        (x0, y0), (x1, y1) = line
        return y0 + (y1 - y0) * (mark - x0) / (x1 - x0)

    assert height(own) == pytest.approx(height(other), abs=0.2)
    assert own[0][1] < other[0][1], "upwards is less"


def test_nothing_paid_at_all_can_be_drawn() -> None:
    assert "NaN" not in charts.cumulated([("own", 0.0, 0.0), ("other", 0.0, 0.0)], 12, None)
