"""What prepare advises before anything is trained: of the examples, of their kind, and of the method.

How many examples a task takes is a rule of thumb, and so is when a method suits them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from finetune_trainer.advice import FEW_TEST_ROWS, Advice, few_test_rows
from finetune_trainer.compare import Option
from finetune_trainer.config import PROMPT_METHODS

FEW_ROWS = 100  # fewer rarely teach more than form
# Training rows that are usual, by task: from, to. Plain text is learnt by tokens, and has no such rule.
USUAL: Final[Mapping[str, tuple[int, int]]] = {
    "labels": (100, 500),
    "free answers": (500, 2_000),
    "answers with reasoning": (2_000, 10_000),
}
FEW_OF_A_LABEL = 10
ONE_LABEL = 0.8  # of the training rows
LEFT_OUT = 0.2  # of the rows that were read
FULL_ROWS = PROMPT_ROWS = 2_000  # Full wants at least so many, and prompts hold what about so many teach
NAMED = 3
KINDS = {"invalid": "invalid", "duplicate": "repeated", "nearDuplicate": "near-duplicates", "tooLong": "too long"}


@dataclass(frozen=True)
class Facts:
    """What is looked at: the counts of a prepare result, the task (a key of USUAL, or `text`), training rows by label (empty where answers
    are no small closed set), the methods side by side with the one that is asked for first, and what an accelerator is called."""

    rows: Mapping[str, int]
    task: str
    labels: Mapping[str, int]
    options: Sequence[Option]
    accelerator: str = ""

    @property
    def asked(self) -> Option | None:
        """The method that is asked for; None where it could not be compared."""
        return next((option for option in self.options if option.asked), None)


def advise(facts: Facts) -> list[Advice]:
    """Everything that applies, what weighs most first."""
    rules = (_few_rows, _smaller_method, _one_label, _rare_labels, _left_out, _few_test_rows, _method_for_rows)
    return [item for rule in rules for item in rule(facts)]


def _few_rows(f: Facts) -> Iterator[Advice]:
    train = f.rows["train"]
    usual = f"{f.task} usually take {USUAL[f.task][0]:,} to {USUAL[f.task][1]:,}" if f.task in USUAL else ""
    if train < FEW_ROWS:
        more = f", and {usual}" if usual else ""
        yield Advice(
            "FewRows",
            f"There are {train} training rows: below {FEW_ROWS} good ones tuning mostly teaches form{more}.",
            "Bring more examples; until then a longer prompt with the best of them may do as well.",
        )
    elif usual and train < USUAL[f.task][0]:
        yield Advice(
            "FewRowsForTask",
            f"There are {train:,} training rows, and {usual}.",
            "Bring more examples, or see by the interval of the gain whether these were enough.",
        )


def _smaller_method(f: Facts) -> Iterator[Advice]:
    asked = f.asked
    fewer = [option for option in f.options if option.ranks and asked and (asked.ranks is None or option.ranks < asked.ranks)]
    if asked is None or not fewer:
        return
    best = min(fewer, key=lambda option: (option.ranks or 0, f.options.index(option)))
    unit = f.accelerator or "accelerators"
    takes = f"takes {asked.ranks} {unit} at least and" if asked.ranks else f"fits on no number of {unit} that is worth naming, and takes"
    yield Advice(
        "SmallerMethodFits",
        f"{asked.method} {takes} about {asked.rank_hours:,.1f} hours of them; {best.method} fits on {best.ranks}, with about "
        f"{best.rank_hours:,.1f}.",
        f"Try method.type {best.method} first: a comparison on the test rows tells whether it falls behind.",
    )


def _one_label(f: Facts) -> Iterator[Advice]:
    label, count = next(iter(f.labels.items()), ("", 0))
    if f.labels and count >= ONE_LABEL * f.rows["train"]:
        yield Advice(
            "OneLabel",
            f"{100 * count / f.rows['train']:.0f} % of the training rows have the answer {_short(label)}: a model that always says so "
            "scores as much.",
            "Bring rows of the other labels, or ask more than that of gate.minScore.",
        )


def _rare_labels(f: Facts) -> Iterator[Advice]:
    rare = [(label, count) for label, count in f.labels.items() if count < FEW_OF_A_LABEL]
    if rare:
        named = ", ".join(f"{_short(label)} {count}" for label, count in rare[-NAMED:])
        yield Advice(
            "RareLabels",
            f"{len(rare)} of {len(f.labels)} labels have fewer than {FEW_OF_A_LABEL} training rows: {named}.",
            "Bring more rows of these, or put labels together.",
        )


def _left_out(f: Facts) -> Iterator[Advice]:
    counts = {words: f.rows[name] for name, words in KINDS.items() if f.rows.get(name)}
    lost, read = sum(counts.values()), f.rows["read"]
    if lost > LEFT_OUT * read:
        told = ", ".join(f"{count:,} {words}" for words, count in counts.items())
        yield Advice(
            "ManyLeftOut",
            f"{lost:,} of {read:,} rows were left out: {told}.",
            "Look at them on the page of the data (kubectl finetune report --data), which has each reason with example rows.",
        )


def _few_test_rows(f: Facts) -> Iterator[Advice]:
    if 0 < f.rows["test"] < FEW_TEST_ROWS:
        yield few_test_rows(f"There are {f.rows['test']} test rows: only large gains can be proven with so few.")


def _method_for_rows(f: Facts) -> Iterator[Advice]:
    asked, train = f.asked, f.rows["train"]
    if asked is None:
        return
    if asked.method == "Full" and train < FULL_ROWS:
        yield Advice(
            "FullForFewRows",
            f"Full trains all {asked.trained:,} weights on {train:,} rows, and forgets more of what the model knew than an adapter would.",
            "Try LoRA, or limit what may be forgotten by gate.maxForgettingPercent.",
        )
    if asked.method in PROMPT_METHODS and train >= PROMPT_ROWS:
        yield Advice(
            "PromptForManyRows",
            f"{asked.method} trains {asked.trained:,} numbers on {train:,} rows: so many rows can teach more than a prompt holds.",
            "Try LoRA.",
        )


def _short(label: str) -> str:
    text = " ".join(label.split())
    return f"‘{text if len(text) <= 40 else text[:39] + '…'}’"


def task(labels: Mapping[str, int], *, plain: bool, reasoned: bool) -> str:
    """What the rows teach, by their answers."""
    return "text" if plain else "labels" if labels else "answers with reasoning" if reasoned else "free answers"


def of(content: Mapping[str, Any], found: Sequence[Option], accelerator: str) -> list[Advice]:
    """The advice on prepared content."""
    return advise(Facts(content["rows"], content["task"], content["labels"], found, accelerator))
