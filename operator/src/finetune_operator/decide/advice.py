"""What the stages of the newest revision advise: kept in the status in their order, told once in an Event, and never in anybody's way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from finetune_operator import conditions
from finetune_operator.api.status import Advice
from finetune_operator.decide.draft import Draft

STAGES: Final = ("prepare", "baseline", "evaluate")
MOST: Final = 4  # of a stage; its page has all
CODE, CHARACTERS = 64, 400  # of a code, and of a sentence


def heard(d: Draft, stage: str, said: Any) -> Draft:
    """The same draft with what a stage that ended advises in place of what it and later ones did before. What a later stage finds again is
    told by that one alone."""
    if stage not in STAGES:
        return d
    before = d.status.advice or []
    new = list(_read(stage, said))[:MOST]
    codes, earlier = {item.code for item in new}, STAGES[: STAGES.index(stage)]
    if untold := [item for item in new if item not in before]:
        d = d.note("Normal", conditions.ADVICE, " ".join(f"{item.code}: {item.message} {item.fix}" for item in untold))
    return d.set(advice=[*(item for item in before if item.stage in earlier and item.code not in codes), *new] or None)


def found(d: Draft, code: str, item: Advice | None) -> Draft:
    """The same draft with what the operator itself advises under a code, or without it: behind what the same stage said. An Event tells
    it once, whatever becomes of its figures."""
    before = d.status.advice or []
    told = code in {known.code for known in before}
    if item in before or (item is None and not told):
        return d
    kept = [known for known in before if known.code != code]
    if item is None:
        return d.set(advice=kept or None)
    place = sum(STAGES.index(known.stage) <= STAGES.index(item.stage) for known in kept)
    d = d if told else d.note("Normal", conditions.ADVICE, f"{code}: {item.message} {item.fix}")
    return d.set(advice=[*kept[:place], item, *kept[place:]])


def _read(stage: str, said: Any) -> Iterator[Advice]:
    """What is in the form that was agreed; an image may say anything."""
    for item in said if isinstance(said, list) else ():
        match item:
            case {"code": str(code), "message": str(message), "fix": str(fix)}:
                yield Advice(stage=stage, code=code[:CODE], message=message[:CHARACTERS], fix=fix[:CHARACTERS])
