"""What should be the case now? An ordered list of rules, each one small pure function in a file of its own."""

from __future__ import annotations

from finetune_operator.decide import (
    arms,
    budget,
    control,
    costs,
    exposure,
    extras,
    gate,
    layout,
    retention,
    retry,
    revision,
    runtime,
    stages,
    suspend,
    train,
)
from finetune_operator.decide.draft import Draft, Rule
from finetune_operator.observed import Observed

# The newest revision's way, in order; the first rule that must wait blocks the ones behind it. `metered`, `heard`, `rollout`, `exposed`,
# `remembered`, `obsolete` and `clean` always run: what serves goes on serving, and what rolls out goes on, whatever the newest revision
# waits for.
RULES: tuple[Rule, ...] = (
    revision.current,
    costs.metered,  # of a Job that failed before another takes its place
    retention.recalled,
    retry.reopen,
    suspend.suspended,
    suspend.stopped,
    layout.one_slice,
    layout.one_machine,
    runtime.image,
    stages.fetch,
    stages.prepare,
    layout.memory,
    budget.expected,
    budget.foreseen,
    stages.baseline,
    stages.not_needed,
    layout.one_machine,  # both once more, of a training that an edit has just made needed
    layout.memory,
    budget.within,
    train.train,
    budget.uncounted,
    stages.evaluate,
    gate.gate,
    control.heard,
    arms.rollout,
    exposure.exposed,
    extras.remembered,
    suspend.obsolete,
    retention.clean,
)


def decide(observed: Observed) -> Draft:
    """The status as it will be, and what must exist because of it."""
    draft = Draft(status=observed.status)
    for rule in RULES:
        draft = rule(observed, draft)
    return draft
