"""Advice before any training: of the prepared rows, of the methods side by side, and of the reference's score, with its page."""

# ruff: noqa: E501 - one case, one line: it reads as a table

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_trainer import advice, compare, estimate
from finetune_trainer.advice import Advice
from finetune_trainer.compare import Option
from finetune_trainer.config import BeforeConfig, ComputeConfig, MethodConfig
from finetune_trainer.data import advice as of_data
from finetune_trainer.data import quality
from finetune_trainer.evaluate import before, comparison
from finetune_trainer.evaluate.comparison import Compared
from finetune_trainer.evaluate.throughput import Answering
from finetune_trainer.exits import Interrupted, UserError

from tests.trainer import evaluations as made
from tests.trainer.test_report import EVIL, Page

GIB = 2**30
LORA = Option("LoRA", True, 207_093_760, 40 * GIB, 1, 36_000, 80.0)
FULL = Option("Full", False, 70_553_706_496, 1100 * GIB, 16, 48_000, 106.7)


def facts(**changes: Any) -> of_data.Facts:
    """Of data and a method that nothing is to be said of."""
    rows = {"read": 3000, "train": 2400, "validation": 300, "test": 300}
    return of_data.Facts(**{"rows": rows, "task": "free answers", "labels": {}, "options": [LORA, FULL], "accelerator": "h100", **changes})


def counts(**changes: int) -> dict[str, int]:
    return {**facts().rows, **changes}


def asked(option: Option, *others: Option) -> list[Option]:
    return [replace(option, asked=True), *(replace(other, asked=False) for other in others)]


# what was prepared → the code of the advice and words of it (none: nothing is said)
OF_DATA: dict[str, tuple[of_data.Facts, str, str]] = {
    "enough of everything": (facts(), "", ""),
    "fewer than a hundred rows": (facts(rows=counts(train=99)), "FewRows", "There are 99 training rows: below 100 good ones tuning mostly teaches"),
    "a hundred labels": (facts(rows=counts(train=100), task="labels"), "", ""),
    "fewer free answers than are usual": (facts(rows=counts(train=499)), "FewRowsForTask", "There are 499 training rows, and free answers usually take 500"),
    "as many free answers as are usual": (facts(rows=counts(train=500)), "", ""),
    "reasoning takes more": (facts(rows=counts(train=1999), task="answers with reasoning"), "FewRowsForTask", "2,000 to 10,000"),
    "plain text is not counted in rows": (facts(rows=counts(train=120), task="text"), "", ""),
    "few test rows": (facts(rows=counts(test=49)), "FewTestRows", "There are 49 test rows"),
    "no test rows, which were not asked for": (facts(rows=counts(test=0)), "", ""),
    "many rows were left out": (facts(rows=counts(invalid=1, nearDuplicate=700)), "ManyLeftOut", "701 of 3,000 rows were left out: 1 invalid, 700 near-dup"),
    "a fifth of the rows was left out": (facts(rows=counts(duplicate=600)), "", ""),
    "nearly all have one answer": (facts(task="labels", labels={"yes": 2000, "no": 400}), "OneLabel", "83 % of the training rows have the answer ‘yes’"),
    "all have one answer": (facts(task="labels", labels={"yes": 2400}), "OneLabel", "100 % of the training rows have the answer ‘yes’"),
    "a label is rare": (facts(task="labels", labels={"a": 1400, "b": 991, "c": 9}), "RareLabels", "1 of 3 labels have fewer than 10 training rows: ‘c’ 9"),
    "all weights take more accelerators": (
        facts(options=asked(FULL, LORA)), "SmallerMethodFits",
        "Full takes 16 h100 at least and about 106.7 hours of them; LoRA fits on 1, with about 80.0.",
    ),
    "all weights fit on none": (
        facts(options=asked(replace(FULL, ranks=None), LORA)), "SmallerMethodFits",
        "Full fits on no number of h100 that is worth naming, and takes about 106.7 hours of them; LoRA fits on 1, with about 80.0.",
    ),
    "nothing is known of the accelerator": (facts(options=asked(replace(FULL, ranks=None), replace(LORA, ranks=None))), "", ""),
    "all weights on few rows": (facts(rows=counts(train=1999), options=asked(FULL)), "FullForFewRows", "trains all 70,553,706,496 weights on 1,999 rows"),
    "a prompt for many rows": (facts(options=asked(replace(LORA, method="PTuning"))), "PromptForManyRows", "so many rows can teach more"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "code", "words"), OF_DATA.values(), ids=OF_DATA)
def test_advice_on_data_and_method(given: of_data.Facts, code: str, words: str) -> None:
    said = of_data.advise(given)
    assert [item.code for item in said] == ([code] if code else [])
    assert words in "".join(item.message for item in said)


TASKS = {
    "labels": ["yes", "no"] * 4,
    "answers with reasoning": ["<think>\nTwo and two.\n</think>\n4", "So it is 5.\n#### 5", "Step 1: add."],
    "free answers": [f"step number {n}" for n in range(9)],
}


@pytest.mark.parametrize(("task", "texts"), TASKS.items())
def test_what_rows_teach_is_told_by_their_answers(task: str, texts: list[str]) -> None:
    answers = quality.Answers()
    for text in texts:
        answers.add(text)
    assert of_data.task(answers.labels, plain=False, reasoned=answers.reasoned) == task
    assert of_data.task(answers.labels, plain=True, reasoned=answers.reasoned) == "text"
    assert answers.labels == ({"yes": 4, "no": 4} if task == "labels" else {})


def test_methods_side_by_side_have_the_one_that_is_asked_for_first_and_what_they_share() -> None:
    seen = []

    def forecast(method: MethodConfig) -> tuple[int, Any]:
        seen.append(method)
        if method.type == "PromptTuning":
            raise UserError("ModelUnsuitable", "it has no room for a prompt")
        whole = {"weights": GIB * (64 if method.type == "Full" else 16), "activations": 32 * GIB}
        sharded = {"parameters": 40 * GIB, "masters": 24 * GIB, "activations": 32 * GIB} if method.type == "Full" else {}
        told = {"memoryBytes": sum(whole.values()), "memory": whole, "sharded": sharded, "seconds": 7200, "passTokens": 8, "longest": 4}
        return 7, {**told, "recomputed": None}

    method = MethodConfig.model_validate({"type": "QLoRA", "quantization": "Int8", "lora": {"rank": 3}, "objective": "DPO"})
    compute = ComputeConfig.model_validate({"gpusPerNode": 2, "acceleratorMemory": 40 * GIB})
    found = compare.options(method, compute, forecast)
    assert [(o.method, o.asked, o.ranks, o.rank_hours) for o in found] == [
        ("QLoRA", True, 1, 4.0), ("LoRA", False, 1, 4.0), ("Full", False, None, 4.0),
    ], "of all weights 40 GiB are whole beside ZeRO2, and ZeRO3 does not go with DPO"  # fmt: skip
    lora = seen[1].lora
    assert (seen[1].objective, lora and lora.rank, seen[1].quantization) == ("DPO", 3, None)
    assert compare.read(compare.told(found)) == found
    assert compare.table(found[:1], {"passTokens": 8}, "") == "", "one alone is compared with nothing"


def test_a_method_at_which_a_model_fails_is_left_out_and_a_stop_is_a_stop(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever its code raises: of a method that nobody asked for nothing may end the stage."""
    told = {"memoryBytes": 1, "memory": {}, "sharded": {}, "seconds": 7200, "passTokens": 8, "longest": 4, "recomputed": None}
    errors = {"QLoRA": AssertionError("Padding_idx must be within num_embeddings"), "Full": KeyError("rope_type")}

    def forecast(method: MethodConfig) -> tuple[int, Any]:
        if method.type in errors:
            raise errors[method.type]
        return 7, told

    found = compare.options(MethodConfig(), ComputeConfig(), forecast)
    assert [option.method for option in found] == ["LoRA", "PromptTuning"]
    said = capsys.readouterr().out.splitlines()
    assert said == ["not compared: QLoRA: Padding_idx must be within num_embeddings", "not compared: Full: 'rope_type'"]
    errors["Full"] = Interrupted("Interrupted", "stopped by SIGTERM")
    with pytest.raises(Interrupted):
        compare.options(MethodConfig(), ComputeConfig(), forecast)


def test_a_result_holds_as_much_advice_as_there_is_room_for() -> None:
    item = Advice("Code", "m" * 300, "f" * 300)
    assert len(advice.told([item] * 9)) == 2
    assert advice.read(advice.told([item])) == [item]
    assert advice.read(None) == []


# ---- the reference's score

SPEED = Answering(64, 40.0, 6400, 1600, 16)
PREPARED = {"rows": {"train": 500, "test": 64}, "tokens": {"train": 60_000}, "estimate": {"seconds": 7200, "passTokens": 2048}}


def told(
    metric: str = "ExactMatch", share: float = 0.5, enough: float | None = None, reference: str = "base", **changes: Any
) -> before.Before:
    """A reference that has that share right of 64 rows."""
    scored = made.scored(metric, 64, share, 1)
    rows = [replace(row, scores={metric: float(n < 64 * share)} if metric != "Loss" else row.scores) for n, row in enumerate(scored)]
    score = {"score": share if metric != "Loss" else -share, "low": 0.4, "high": 0.9, "n": 64}
    known: dict[str, Any] = {
        "finetune": "ml/shop", "revision": "6364d116", "asked": BeforeConfig(reference=reference, enough=enough),
        "gated": Compared(metric, None, score, None), "alone": comparison.pairs(metric, made.questions(64), rows, rows),
        "prepared": PREPARED, "answering": SPEED,
    }  # fmt: skip
    return before.Before(**{**known, **changes})


def few(score: float, low: float) -> dict[str, Any]:
    """What examples did: that score, and so much more at least than without."""
    paired = {"metric": "ExactMatch", "difference": score - 0.45, "low": low, "high": 0.6, "n": 16}
    found = {"score": score, "low": score - 0.2, "high": min(1.0, score + 0.2), "n": 16}
    return {"examples": 4, "tokens": 1212, "score": found, "alone": {"score": 0.45, "low": 0.2, "high": 0.7, "n": 16}, "paired": paired}


def gate(score: float | None = None, improvement: float | None = None) -> BeforeConfig:
    return BeforeConfig.model_validate({"minScore": score, "minImprovement": improvement})


BEFORE: dict[str, tuple[before.Before, list[str], str]] = {
    "it is not good": (told(), ["TryWithoutTraining"], "a base model of twice the weights takes about 80 s of this model server, where training is "),
    "it reaches the limit": (told(share=0.8, enough=0.8), ["NotNeeded"], "the base model scores 80.0 %, at least the 80.0 % of evaluation.skip"),
    "it does not": (told(share=0.79, enough=0.8), ["TryWithoutTraining"], ""),
    "it is good, and nobody set a limit": (told(share=0.8), ["AlreadyGood", "TryWithoutTraining"], "The base model already scores 80.0 %"),
    "parts are no rights": (told("TokenF1", share=0.9), ["TryWithoutTraining"], ""),
    "a limit above was set": (told(share=0.9, enough=0.95), ["TryWithoutTraining"], ""),
    "a loss asks no server": (told("Loss", answering=None), [], ""),
    "a loss reaches its limit": (told("Loss", share=1.0, enough=-1.1, answering=None), ["NotNeeded"], "scores 1.0000 bits/byte, at least the 1.1000"),
    "of a revision that is live": (told(reference="0a0b0c0d", enough=0.4), ["NotNeeded"], "revision 0a0b0c0d scores 50.0 %"),
    "its prompts are its own": (told(reference="0a0b0c0d"), [], ""),
    "the data cannot be read": (told(prepared={}), ["TryWithoutTraining"], "takes about 80 s of this model server."),
    "examples help, and nothing is asked for": (
        told(few_shot=few(0.91, 0.3)), ["FewShotTried", "TryWithoutTraining"],
        "A prompt with 4 solved examples was tried: 91.0 % on 16 test rows, 45.0 % without (+46.0 points [30.0, 60.0]).",
    ),
    "examples reach the limit": (
        told(enough=0.9, few_shot=few(0.9, 0.3)), ["FewShotEnough", "TryWithoutTraining"],
        "A prompt with 4 solved examples already scores 90.0 % on 16 test rows (45.0 % without), which reaches the 90.0 % of "
        "evaluation.skipTrainingIfBaselineAtLeast: training may not be needed.",
    ),
    "examples are just below the limit": (told(enough=0.9, few_shot=few(0.89, 0.3)), ["FewShotTried", "TryWithoutTraining"], ""),
    "examples reach what the gate asks": (
        told(asked=gate(0.8, 0.3), few_shot=few(0.8, 0.3)), ["FewShotEnough", "TryWithoutTraining"],
        "reaches the 80.0 % of evaluation.gate.minScore and the +30.0 points of gate.minImprovement: training may not be needed.",
    ),
    "examples reach but one of what the gate asks": (told(asked=gate(0.8, 0.31), few_shot=few(0.8, 0.3)), ["FewShotTried", "TryWithoutTraining"], ""),
    "examples reach the score that the gate asks": (told(asked=gate(0.8), few_shot=few(0.8, -0.1)), ["FewShotEnough", "TryWithoutTraining"], ""),
    "examples were not tried": (told(enough=0.1, few_shot={"unmeasured": "w"}), ["NotNeeded"], ""),
    "one example": (told(few_shot={**few(0.5, 0.1), "examples": 1}), ["FewShotTried", "TryWithoutTraining"], "A prompt with 1 solved example was tried"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "codes", "words"), BEFORE.values(), ids=BEFORE)
def test_advice_on_the_score_before_training(given: before.Before, codes: list[str], words: str) -> None:
    said = before.advise(given)
    assert [item.code for item in said] == codes
    assert words in " ".join(item.message for item in said)
    Page(before.render(given))


def test_the_page_shows_why_training_is_not_needed_and_what_else_there_is() -> None:
    few = {"code": "FewRows", "message": "There are few.", "fix": "Bring more."}
    prepared = {**PREPARED, "advice": [few], "methods": compare.told([LORA, FULL]), "accelerator": "h100"}
    shown = " ".join(Page(before.render(told(share=0.875, enough=0.8, prepared=prepared))).text.split())
    for words in (
        "Revision 6364d116, before training",
        "No: the base model scores 87.5 %, which reaches the 80.0 % of evaluation.skipTrainingIfBaselineAtLeast.",
        "There are few. Bring more.",
        "LoRA207,093,76040.0 GiB110.0 h80.00",
        "of the base model",
    ):
        assert words in shown, words
    assert "Rows that it does not answer rightly" in shown
    assert "tuned" not in shown


def test_the_page_shows_the_score_with_examples_beside_the_one_without() -> None:
    shown = " ".join(Page(before.render(told(few_shot=few(0.91, 0.3)))).text.split())
    for words in (
        "91.0 %with 4 solved examples in the prompt", "with 4 examples91.0 % [71.0, 100.0]",
        "With 4 solved examples of the training rows before each question the base model scores 91.0 % on 16 of the test rows, of which it has "
        "45.0 % without (+46.0 points [30.0, 60.0]).",
        "Where that is enough, such a prompt takes about 1,212 tokens a request and no training.",
    ):  # fmt: skip
        assert words in shown, words
    alone = Page(before.render(told())).text
    assert "examples" not in alone


def test_no_text_of_the_page_becomes_markup() -> None:
    prepared = {
        **PREPARED,
        "advice": [{"code": "C", "message": EVIL, "fix": EVIL}],
        "methods": compare.told([LORA, FULL]),
        "accelerator": EVIL,
    }
    page = Page(before.render(told(prepared=prepared, finetune=EVIL, revision=EVIL, reference=EVIL, few_shot={"unmeasured": EVIL})))
    assert not page.tags & {"script", "img", "a"}
    assert EVIL in page.text


def test_the_fewest_ranks_are_those_that_hold_what_is_whole_and_their_part() -> None:
    told: dict[str, Any] = {
        "memory": {"weights": 100, "activations": 80}, "recomputed": 8, "passTokens": 8, "longest": 4,
        "sharded": {"parameters": 60, "masters": 40, "activations": 80, "gathered": 10},
    }  # fmt: skip
    method = MethodConfig(type="Full")
    assert estimate.ranks_needed(told, 104, method) == 1, "recomputed, in passes of the longest row"
    assert estimate.ranks_needed(told, 103, method) == 2
    assert estimate.ranks_needed(told, 15, method) == 100, "stage 3 divides parameters too, and gathers some"
    assert estimate.ranks_needed(told, 14, method) is None
    assert estimate.ranks_needed({**told, "sharded": {}}, 103, method) is None
    gathers = {**told, "sharded": {**told["sharded"], "gathered": 90}}
    assert estimate.ranks_needed(gathers, 90, method) == 2, "stage 1 gathers nothing"
