"""What does the user ask of the rollout? The annotation `finetune.dev/rollout` says `verb:rollout`.

A value names the rollout that it means, so that none acts on the next one. It is judged once, when it is first seen, and what it came
to is in `status.control`; it holds while it stands, so taking the annotation back lifts a pause.
"""

from __future__ import annotations

from typing import Final

from finetune_operator import conditions, names
from finetune_operator.api.status import Control, Rollout, Status
from finetune_operator.decide.draft import Draft, stamp
from finetune_operator.decide.rollout import states
from finetune_operator.observed import Observed

LONGEST: Final = 253  # characters of a value that are looked at and told
MEANING: Final = {
    states.PAUSE: "no further step is taken until it is resumed",
    states.RESUME: "it goes on with its steps",
    states.PROMOTE: "all users are moved as soon as the new arm serves, unless a guard fails; then it bakes",
    states.ABORT: "everybody is taken back",
}


def heard(o: Observed, d: Draft) -> Draft:
    """Judge what is asked when it is new; forget what is asked no more."""
    asked, before = o.control[:LONGEST], d.status.control
    if asked == (before.asked if before else ""):
        return d
    if not asked:
        return _taken_back(d)
    verb, running = asked.partition(":")[0], d.status.rollout
    refusal, holds = _refusal(asked, running), _in_force(before)
    if refusal:
        message = f"the annotation {names.CONTROL}={asked} is without effect: {refusal}{f'; {holds} holds on' if holds else ''}"
        d = d.note("Warning", conditions.CONTROL_IGNORED, message)
    else:
        message = f"rollout {_rollout(asked)}: {MEANING[verb]}"
        d = d.note("Normal", "Rollout", f"{verb} is asked for: {message}")
    outcome = "Ignored" if refusal else "Accepted"
    kept = holds if refusal else None
    return d.set(control=Control(asked=asked, outcome=outcome, message=message[:1024], time=stamp(o.now), in_force=kept))


def wish(status: Status, running: Rollout) -> str:
    """The verb that is in force for the running rollout; empty: none."""
    value = _in_force(status.control) or ""
    return value.partition(":")[0] if _rollout(value) == running.name else ""


def _in_force(control: Control | None) -> str | None:
    """The accepted value that holds: a misspelt or stale one after it changes nothing."""
    if control is None:
        return None
    return control.asked if control.outcome == "Accepted" else control.in_force


def _taken_back(d: Draft) -> Draft:
    running = d.status.rollout
    lifted = running is not None and running.state in states.ACTIVE and wish(d.status, running) == states.PAUSE
    d = d.set(control=None)
    return d.note("Normal", "Rollout", "the pause is taken back: it goes on with its steps") if lifted else d


def _refusal(asked: str, running: Rollout | None) -> str:
    """Why it cannot be done; empty when it can."""
    verb, name = asked.partition(":")[0], _rollout(asked)
    if verb not in MEANING or not name:
        return f"it is to be VERB:ROLLOUT with a verb of {', '.join(MEANING)} and the name in status.rollout.name"
    if running is None or running.state not in states.ACTIVE:
        last = f"; the last one, {running.name}, is {running.state}" if running and running.name else ""
        return f"no rollout is running{last}"
    if name != running.name:
        return f"the rollout that is running is {running.name}, of revision {running.revision}"
    if running.state == states.ROLLING_BACK:
        return "everybody is being taken back already"
    if verb == states.PROMOTE and running.weight >= 100:
        return "all users are on the new arm already; it is promoted once it has baked, for as long as rollout.bake says"
    return ""


def _rollout(asked: str) -> str:
    return asked.partition(":")[2]
