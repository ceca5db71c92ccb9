"""What should be the case now? An ordered list of rules, each one small pure function in a file of its own."""

from __future__ import annotations

from finetune_operator.decide.arms import rollout
from finetune_operator.decide.draft import Draft, Rule
from finetune_operator.decide.gate import gate
from finetune_operator.decide.retry import reopen
from finetune_operator.decide.revision import current
from finetune_operator.decide.stages import baseline, evaluate, fetch, not_needed, prepare
from finetune_operator.decide.suspend import obsolete, stopped, suspended
from finetune_operator.decide.train import train
from finetune_operator.observed import Observed

# The newest revision's way, in order; the first rule that must wait blocks the ones behind it. `rollout` and `obsolete`
# always run: what serves goes on serving, and what rolls out goes on, whatever the newest revision waits for.
RULES: tuple[Rule, ...] = (
    current,
    reopen,
    suspended,
    stopped,
    fetch,
    prepare,
    baseline,
    not_needed,
    train,
    evaluate,
    gate,
    rollout,
    obsolete,
)


def decide(observed: Observed) -> Draft:
    """The status as it will be, and what must exist because of it."""
    draft = Draft(status=observed.status)
    for rule in RULES:
        draft = rule(observed, draft)
    return draft
