"""What solved examples in its prompt do for the base model, for people: on the pages. Pure; who puts the texts there escapes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_trainer.evaluate import charts
from finetune_trainer.pages import number

UNMEASURED = "unmeasured"  # why there are no figures


def figures(found: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """What `fewshot.measure` found; None where it did not look, or says why there are none."""
    return found if found and UNMEASURED not in found else None


def solved(count: int) -> str:
    """So many examples, in words."""
    return f"{count} solved example{'' if count == 1 else 's'}"


def sentence(metric: str, found: Mapping[str, Any] | None) -> str:
    """What was found, or why there is nothing; empty where nobody looked."""
    known = figures(found)
    if known is None:
        return f"Examples in the prompt were not tried: {found[UNMEASURED]}." if found else ""
    score, alone = charts.value(metric, known["score"]), charts.value(metric, known["alone"])
    return (
        f"With {solved(known['examples'])} of the training rows before each question the base model scores {score} on "
        f"{number(known['score']['n'])} of the test rows, of which it has {alone} without ({gain(metric, known)})."
    )


def bar(found: Mapping[str, Any] | None) -> tuple[str, Mapping[str, Any]] | None:
    """The name and the score of a drawing's bar."""
    known = figures(found)
    return (f"with {solved(known['examples']).replace('solved ', '')}", known["score"]) if known else None


def gain(metric: str, known: Mapping[str, Any]) -> str:
    """The difference that the examples make, with its interval."""
    paired = known["paired"]
    return f"{charts.difference(metric, paired)} [{100 * paired['low']:.1f}, {100 * paired['high']:.1f}]"
