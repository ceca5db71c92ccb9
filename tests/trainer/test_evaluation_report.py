"""The evaluation's page and card: everything on them, nothing from outside, nothing of anybody's text as markup; and what is advised."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from finetune_trainer import card, layout
from finetune_trainer.advice import Advice
from finetune_trainer.config import MetricConfig, ReportConfig, RunConfig
from finetune_trainer.evaluate import advice, charts, comparison, report, rows
from finetune_trainer.evaluate.comparison import Compared
from finetune_trainer.evaluate.rows import ScoredRow

from tests.trainer import evaluations as made
from tests.trainer.support import make_config
from tests.trainer.test_report import EVIL, Page

SVG = {"circle", "polyline"}


def page(text: str) -> Page:
    return Page(re.sub(r"<(circle|polyline)([^>]*)/>", r"<rect\2/>", text))


def visible(text: str) -> str:
    return page(text.split("</style>")[1].replace("</head>", "").replace("</html>", "").replace("</body>", "").replace("<body>", "")).text


def test_the_page_has_scores_with_intervals_curves_rows_and_where_it_comes_from() -> None:
    told = visible(report.render(made.report(excluded=3)))
    for words in (
        "Revision 6364d116 against the base model", "for ml/shop", "81.2 % [71.9, 90.6]", "+68.8 points [54.7, 81.2]", "56.2 %",
        "a score of at least 80.0 % and that the lower end of the difference is at least +5.0 points", "Bars are 95 % intervals",
        "right in both 6", "now right 46", "now wrong 2", "wrong in both 10", "other rows than the reference query's",
        "10 of 46 are shown", "the weights of step 100 are kept", "150 of 150 steps: all steps were made",
        "time of this training5 min", "time that prepare expected7 min", "memory of a rank that prepare expected16.0 GiB",
        "GPU hours0.69", "cost of these hours1.73 USD", "tokens a second140",
        "hf://HuggingFaceTB/SmolLM2-135M-Instruct", "256 training, 32 validation, 64 test", "LoRA SFT", "learning rate0.001",
        "left out: the live model was trained on them",
    ):  # fmt: skip
        assert words in told, words


def test_where_and_why_training_stopped_early_is_told_and_drawn() -> None:
    result = {"step": 90, "totalSteps": 150, "bestStep": 60, "stoppedEarly": True}
    curves = {name: [point for point in points if point[0] <= 90] for name, points in made.made()["curves"].items()}
    training = {"learningRate": 1e-3, "earlyStoppingPatience": 3}
    text = report.render(made.report(made=made.made(result=result, curves=curves, training=training)))
    told = visible(text)
    for words in (
        "90 of 150 steps: it stopped early, for the validation loss has not fallen since step 60 in 3 evaluations "
        "(training.earlyStopping.patience). The weights of step 60 are kept.",
        "the weights of step 60 are kept (dashed)", "training stopped early after step 90 (dotted)",
    ):  # fmt: skip
        assert words in told, words
    assert (text.count('<line class="asked" x1="590.3"'), text.count('<line class="stopped" x1="860.0"')) == (1, 1)
    bare = visible(report.render(made.report(made=made.made(result={"step": 90, "totalSteps": 150, "stoppedEarly": True}))))
    assert "it stopped early, for the validation loss has not fallen." in bare
    assert "stopped early after" not in visible(report.render(made.report()))


def test_what_was_forgotten_is_shown_by_kind_of_text_with_what_the_gate_allows() -> None:
    text = report.render(made.report(forgetting=made.forgetting()))
    told = visible(text)
    for words in (
        "+6.2 %perplexity of general text",
        "General text, before and after", "+6.2 % [+4.7, +8.0]", "24.83", "26.37", "0.0612", "91.3 %", "other languages",
        "questions, answered", "code", "English prose", "sha256:99d299d299d299d2",
        "The gate asks that the lower end of the rise of all texts is not above 5 %.",
    ):  # fmt: skip
        assert words in told, words
    assert "rise of perplexity in percent" in text
    assert text.count("the gate asks for this") == 3, "score, difference, and how much may be forgotten"
    assert "The gate asks that the lower end" not in visible(report.render(made.report("Loss", forgetting=made.forgetting())))


def test_what_was_not_measured_says_why_and_what_was_not_asked_says_nothing() -> None:
    told = visible(report.render(made.report(forgetting={"unmeasured": f"no room {EVIL}"})))
    assert f"Not measured: no room {EVIL}" in told
    assert "perplexity of general text" not in told
    assert "General text" not in visible(report.render(made.report()))


def test_a_rise_beyond_all_bounds_can_be_drawn() -> None:
    told = visible(report.render(made.report(forgetting=made.forgetting(1e9, tuned={"perplexity": 1e9, "low": 1e9, "high": 1e9}))))
    assert "+1.0e+09 %" in told


def test_a_loss_is_in_bits_per_byte_and_has_no_right_and_wrong() -> None:
    told = visible(report.render(made.report("Loss", shares=(1.3, 0.95), reference="0a0b0c0d")))
    assert "against revision 0a0b0c0d" in told
    assert "1.3599 bits/byte" in told
    assert "+0.4190 bits/byte" in told
    assert "The gate asks of Loss: that the tuned model is not provably worse." in told
    assert "now right" not in told
    assert "neither model answers rightly" not in told


def test_no_text_becomes_markup_and_nothing_comes_from_outside() -> None:
    test = made.questions(9, EVIL + "{}")
    evil = [ScoredRow(row.id, EVIL, {"SqlExecution": float(n % 2)}, {"SqlExecution": EVIL, "server": EVIL}) for n, row in enumerate(test)]
    other = [replace(row, scores={"SqlExecution": 0.0}) for row in evil]
    document = made.made(
        model={"source": EVIL, "digest": EVIL}, data={"digest": EVIL}, method={"type": EVIL, "objective": EVIL}, time=EVIL, license=EVIL
    )
    found = made.report(
        made=document,
        pairs=comparison.pairs("SqlExecution", test, evil, other),
        finetune=EVIL,
        revision=EVIL,
        reference=EVIL,
        advice=[Advice(EVIL, EVIL, EVIL)],
        advised=[Advice(EVIL, EVIL, EVIL)],
    )
    text = report.render(found)
    assert page(text).tags.isdisjoint({"script", "img", "link", "iframe", "a", "object"})
    assert not any(name.startswith("on") or name in ("src", "href") for name in page(text).attributes)
    assert "<script" not in text
    assert EVIL in visible(text)


@pytest.mark.parametrize(
    "changes",
    [
        {"made": {}},
        {"pairs": []},
        {"advice": [], "rows": {}},
        {"made": made.made(curves={"losses": [[1, 2.0]], "validations": []}, result={"step": 1, "totalSteps": 1})},
        {"made": made.made(curves={"losses": [[1, 2.0], [2, 2.0]], "validations": [[2, 2.0]]}, result={})},
        {"compared": [Compared("ExactMatch", None, {"score": None, "low": None, "high": None, "n": 0}, None)], "pairs": []},
        {
            "compared": [
                Compared(
                    "Loss", {"score": -1.0, "low": -1.0, "high": -1.0, "n": 1}, {"score": -1.0, "low": -1.0, "high": -1.0, "n": 1},
                    {"metric": "Loss", "difference": 0.0, "low": 0.0, "high": 0.0, "n": 1},
                )
            ],
        },
        {"compared": [Compared("ExactMatch", None, {"score": 1.0, "low": 1.0, "high": 1.0, "n": 3},
                               {"metric": "ExactMatch", "difference": None, "low": None, "high": None, "n": 0})]},
    ],
    ids=["no artifact", "no pairs", "no advice", "one step", "two steps", "no rows", "all the same", "nothing to pair"],
)  # fmt: skip
def test_what_is_not_known_is_left_out(changes: dict[str, Any]) -> None:
    text = report.render(made.report(**changes))
    page(text)
    assert "None" not in visible(text)
    assert "nan" not in visible(text)


def test_a_long_answer_is_cut() -> None:
    test = made.questions(1)
    pair = comparison.Pair(test[0], ScoredRow("0", "x" * 10**6, {"E": 0.0}), ScoredRow("0", "y" * 10**6, {"E": 1.0}), "E")
    assert len(report.render(made.report(pairs=[pair]))) < 40_000


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-0.3, 0.02), (1e-6, 3e-6), (1, 150), (0.7, 0.71), (-12.5, 1e5)])
def test_ticks_are_few_and_round_and_inside(low: float, high: float) -> None:
    ticks = charts.ticks(low, high)
    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-9 <= at <= high + 1e-9 for at in ticks)
    assert all(len(f"{at:g}") <= 7 for at in ticks)


# ---- advice


def facts(**changes: Any) -> advice.Facts:
    """Of a run that went well: nothing to say."""
    after = {"score": 0.9, "low": 0.85, "high": 0.95, "n": 200}
    gated = Compared("ExactMatch", after, after, {"metric": "ExactMatch", "difference": 0.5, "low": 0.4, "high": 0.6, "n": 200})
    known: dict[str, Any] = {
        "gated": gated,
        "pairs": [],
        "training": {"step": 100, "bestStep": 100},
        "validations": [],
    }
    return advice.Facts(**{**known, **changes})


def gated(low: float, high: float, *, metric: str = "ExactMatch", score: tuple[float, float] = (0.85, 0.95), n: int = 200) -> Compared:
    after = {"score": 0.9, "low": score[0], "high": score[1], "n": n}
    return Compared(metric, after, after, {"metric": metric, "difference": (low + high) / 2, "low": low, "high": high, "n": n})


def answered(*wrong: str, right: int = 10, before: float = 0.0, metric: str = "ExactMatch") -> list[comparison.Pair]:
    """Rows that the tuned model has wrong for those reasons, and so many that it has right."""
    question = made.questions(1)[0]
    old = ScoredRow("0", "a", {metric: before})
    bad = [comparison.Pair(question, old, ScoredRow("0", "a", {metric: 0.0}, {metric: why}), metric) for why in wrong]
    return bad + [comparison.Pair(question, ScoredRow("0", "a", {metric: 0.0}), ScoredRow("0", "a", {metric: 1.0}), metric)] * right


# what was measured → words of the advice (none: nothing is said)
ADVICE: dict[str, tuple[advice.Facts, str]] = {
    "it went well": (facts(), ""),
    "it is worse": (facts(gated=gated(-0.4, -0.1)), "worse, beyond chance"),
    "no difference is proven": (facts(gated=gated(-0.1, 0.1)), "the interval of the difference holds 0"),
    "nothing could be paired": (facts(gated=replace(gated(0, 0), difference={"difference": None, "low": None, "high": None, "n": 0})), ""),
    "some rows are wrong now": (facts(pairs=answered("x", "y", before=1.0)), "2 of 12 rows were right before and are wrong now"),
    "the loss of many rows rose": (
        facts(gated=gated(0.1, 0.2, metric="Loss", n=200), pairs=answered(*"xxxxx", before=0.5, metric="Loss")),
        "The loss of 5 of 15 rows rose",
    ),
    "it overfits": (facts(training={"step": 100, "bestStep": 50}, validations=[[50, 1.0], [100, 1.2]]), "lowest at step 50 of 100"),
    "it was still learning": (facts(validations=[[1, 3.0], [2, 2.0], [3, 1.0]]), "still falling at the end"),
    "it stopped early": (facts(training={"stoppedEarly": True}, validations=[[1, 3.0], [2, 2.0], [3, 1.0]]), ""),
    "most are wrong for one reason": (facts(pairs=answered(*["no such column"] * 3, "other")), "3 of 4 wrong answers"),
    "all are wrong for one reason": (facts(pairs=answered(*["other"] * 5)), ""),
    "general text is forgotten": (
        facts(forgetting=made.forgetting(20.0)),
        "its perplexity rose by 20.0 %, beyond chance by more than 10 %",
    ),
    "as much of it as is borne": (facts(forgetting=made.forgetting(11.0)), ""),
    "more of it than the gate allows": (facts(forgetting=made.forgetting(11.0), max_forgetting_percent=3.0), "more than 3 %"),
    "what is forgotten is not known": (facts(forgetting={"unmeasured": "no room"}), ""),
    "there are few test rows": (facts(gated=gated(0.4, 0.6, n=20)), "rests on 20 test rows. Bring"),
    "the interval is wide": (facts(gated=gated(0.4, 0.6, score=(0.5, 0.8))), "(its interval is 30 points wide)"),
}


@pytest.mark.parametrize("case", ADVICE)
def test_advice_follows_from_what_was_measured(case: str) -> None:
    given, words = ADVICE[case]
    said = advice.advise(given)
    assert len(said) == (1 if words else 0), said
    assert words in "".join(item.text for item in said)
    assert len({item.code for item in said}) == len(said)


# ---- comparison


def test_rows_are_paired_and_sorted_by_what_changed() -> None:
    test = made.questions(4)
    before = [ScoredRow(str(n), "a", {"E": score}) for n, score in enumerate((0.0, 1.0, 0.5, 1.0))]
    after = [ScoredRow(str(n), "a", {"E": score}) for n, score in enumerate((1.0, 0.0, 0.75))]
    pairs = comparison.pairs("E", test, after, before)
    assert [pair.row.id for pair in pairs] == ["0", "1", "2"], "what one of them was not asked is left out"
    assert [pair.row.id for pair in comparison.changed(pairs, better=True)] == ["0", "2"]
    assert [pair.row.id for pair in comparison.changed(pairs, better=False)] == ["1"]
    assert [pair.row.id for pair in comparison.still_wrong(pairs)] == ["2"]
    assert comparison.turned(pairs) == {"right in both": 0, "now right": 1, "now wrong": 1, "wrong in both": 1}


def test_page_and_card_say_what_a_score_is(tmp_path: Path) -> None:
    told = made.report("RougeL")
    report.write(tmp_path, told)
    words = (
        "RougeL: how many words an answer and the reference have in common, in their order; ExactMatch: the share of answers that are the "
        "reference."
    )
    assert words in visible((tmp_path / "report.html").read_text())
    assert words in (tmp_path / "README.md").read_text()
    assert comparison.MEANINGS.keys() == set(get_args(MetricConfig.model_fields["type"].annotation)), "and of every metric"


@pytest.mark.parametrize("metric", ["TokenF1", "RougeL"])
def test_where_a_metric_tells_parts_half_is_enough(metric: str) -> None:
    question = made.questions(1)[0]
    rows = {score: ScoredRow("0", "a", {metric: score}, {metric: "partly right"}) for score in (0.49, 0.5, 0.9)}
    every = [comparison.Pair(question, rows[before], rows[after], metric) for before, after in ((0.49, 0.5), (0.49, 0.49), (0.5, 0.9))]
    assert comparison.turned(every) == {"right in both": 1, "now right": 1, "now wrong": 0, "wrong in both": 1}
    assert comparison.still_wrong(every) == [every[1]]
    assert comparison.reasons(every) == [("partly right", 1)]
    assert f"An answer is called right here from a {metric} of 0.5 on." in visible(report.render(made.report(metric)))
    assert "called right here" not in visible(report.render(made.report("Contains")))


def test_why_an_answer_is_wrong() -> None:
    said = [
        ScoredRow("0", None, {"E": 0.0}, {"server": "prompt too long"}), ScoredRow("0", "  ", {"E": 0.0}), ScoredRow("0", "x", {"E": 0.0}),
        ScoredRow("0", "x", {"E": 0.0}, {"E": "does not run"}), ScoredRow("0", "x", {"E": 1.0}),
    ]  # fmt: skip
    question = made.questions(1)[0]
    assert dict(comparison.reasons([comparison.Pair(question, row, row, "E") for row in said])) == {
        "not answered: prompt too long": 1, "an empty answer": 1, "another answer than the reference's": 1, "does not run": 1,
    }  # fmt: skip


def test_a_metric_that_the_reference_was_not_scored_by_stands_alone() -> None:
    after = [ScoredRow("0", "a", {"E": 1.0, "F": 1.0})]
    one, other = comparison.metrics(["E", "F"], after, [ScoredRow("0", "a", {"E": 0.0})], 95)
    assert (one.difference or {})["difference"] == 1.0
    assert (other.before, other.difference) == (None, None)


# ---- the card


def front(text: str) -> dict[str, Any]:
    _, matter, _ = text.split("---\n", 2)
    return dict(yaml.safe_load(matter))


def test_a_card_has_the_hubs_front_matter_and_says_how_it_is_used() -> None:
    scored = made.report()
    text = card.render(made.made(), card.Results("base", scored.compared, 95))
    told = front(text)
    assert told["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (told["library_name"], told["license"], told["tags"]) == ("peft", "apache-2.0", ["finetune-operator", "lora", "sft"])
    [model] = told["model-index"]
    assert model["results"][0]["metrics"][0] == {"type": "SqlExecution", "value": 0.8125, "name": "SqlExecution"}
    assert "| SqlExecution | 0.1250 [0.0469, 0.2188] | 0.8125 [0.7188, 0.9062] | 0.6875 [0.5469, 0.8125] | 64 |" in text
    assert 'PeftModel.from_pretrained(base, ".")' in text
    whole = card.render(
        made.made(method={"type": "Full", "objective": "DPO", "dpo": {"beta": 0.1}}, model={"source": "pvc://models/llama"})
    )
    assert front(whole)["library_name"] == "transformers"
    assert "base_model" not in front(whole), "the hub does not know it"
    assert "PeftModel" not in whole
    assert "| dpo beta | 0.1 |" in whole


def test_a_card_has_what_was_forgotten() -> None:
    scored = made.report()
    text = card.render(made.made(), card.Results("base", scored.compared, 95, made.forgetting()))
    assert "## General text against the base model" in text
    line = "| all texts | 40 | 2,280 | 24.83 | 26.37 | 0.0612 | 0.1668 | 91.3 % | +6.2 % [+4.7, +8.0] |"
    assert line in text
    assert front(text)["library_name"] == "peft"
    for nothing in (None, {"unmeasured": "no room"}):
        assert "General text" not in card.render(made.made(), card.Results("base", scored.compared, 95, nothing))


def test_a_card_says_nothing_of_time_and_chance() -> None:
    """It is part of what the artifact's digest is of."""
    other = made.made(result={"seconds": 1, "loss": 7.0}, curves={}, time="then", finetune={"name": "other"}, fingerprint="x")
    assert card.render(other) == card.render(made.made())


def test_no_name_breaks_out_of_the_card() -> None:
    evil = "x\n---\nlicense: mine\n| <script>alert(1)</script> `a` [b](c)"
    text = card.render(made.made(model={"source": f"hf://{evil}", "digest": evil}, license=evil, method={"type": evil, "objective": evil}))
    assert front(text)["license"] == evil
    assert front(text)["base_model"] == evil
    body = text.split("---\n", 2)[2].split("```python")[0]
    assert "<script>" not in body
    assert not re.search(r"^license:", body, re.MULTILINE)


# ---- from the volume


def test_the_page_is_gathered_from_what_lies_on_the_volume(tmp_path: Path, work: Path, tiny_model: Path) -> None:
    test = rows.test_rows(work / "data" / "1f2e3d4c")
    before = [ScoredRow(row.id, "no", {"ExactMatch": 0.0}) for row in test]
    after = [ScoredRow(row.id, row.reference, {"ExactMatch": 1.0}) for row in test]
    with layout.transaction(tmp_path / "artifact", layout.ARTIFACT_MANIFEST) as artifact:
        artifact.facts.update(made.made())
    asked = {"reference": "base", "artifact": str(tmp_path / "artifact"), "gate": {"minScore": 0.5}, "spent": {"gpus": 1}}
    document = make_config("evaluate", work, tiny_model, evaluation__report=asked)
    config = RunConfig.model_validate(json.loads(json.dumps(document)))
    assert config.evaluation
    assert config.evaluation.report
    found = report.gather(config, config.evaluation.report, test, after, before, 0)
    report.write(tmp_path, found)
    told = visible((tmp_path / "report.html").read_text())
    assert "Name the" in told
    assert "100.0 % [100.0, 100.0]" in told
    assert "the weights of step 100 are kept" in told
    assert f"{len(test)} test" in told
    assert "| ExactMatch | 0.0000 [0.0000, 0.0000] | 1.0000 [1.0000, 1.0000] |" in (tmp_path / "README.md").read_text()
    (tmp_path / "artifact" / "COMMIT").unlink()
    bare = tmp_path / "bare"
    bare.mkdir()
    report.write(bare, report.gather(config, config.evaluation.report, test, after, before, 0))
    assert [file.name for file in bare.iterdir()] == ["report.html"], "without an artifact that counts there is nothing to make a card of"


def test_a_report_needs_nothing_to_be_asked_for() -> None:
    assert ReportConfig().reference == "base"
