"""Is there time and money left to train? What is spent stops training with a checkpoint; a larger budget lets it go on from there."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from finetune_operator import conditions
from finetune_operator.api.blocks.budget import Budget
from finetune_operator.api.quantities import seconds
from finetune_operator.api.status import Advice, Cost, Estimate
from finetune_operator.decide import advice
from finetune_operator.decide.attempts import ended, gpus, halted, paid, price, running, spent
from finetune_operator.decide.draft import Draft
from finetune_operator.observed import Observed

OVER_BUDGET: Final = "OverBudget"
_CHEAPER: Final = (
    "It would stop with a checkpoint: raise the budget, take fewer epochs, or a method that the page of the data (kubectl finetune report "
    "--data) shows to take less."
)


def expected(o: Observed, d: Draft) -> Draft:
    """Says what the training is expected to cost, before any of it is spent."""
    estimate, each = d.revision.estimate, price(o)
    if estimate is None or each is None or d.revision.artifact:
        return d
    cost = f"{estimate.seconds / 3600 * gpus(o.spec) * each:.2f}"
    return d.update(estimate=estimate.model_copy(update={"cost": cost}))


def foreseen(o: Observed, d: Draft) -> Draft:
    """Does the training take more than is left, by prepare's estimate? Then that is said before it begins; it may begin all the same."""
    if d.revision.attempts or d.revision.artifact or d.revision.estimate is None:
        return d
    over = _beyond(o.spec.budget, d.revision.estimate, d.status.cost)
    item = Advice(stage="prepare", code=OVER_BUDGET, message=over, fix=_CHEAPER) if over else None
    return advice.found(d, OVER_BUDGET, item)


def _beyond(budget: Budget | None, estimate: Estimate, cost: Cost) -> str | None:
    """Which part of the budget the estimate is beyond."""
    if budget is None:
        return None
    hours, spent_hours = estimate.seconds / 3600, float(cost.hours)
    if budget.max_cost and estimate.cost:
        amount, left = float(estimate.cost), float(budget.max_cost) - (paid(cost) or 0)
        unit = f" {budget.currency}" if budget.currency else ""
        if amount > left:
            return f"By prepare's estimate this training costs {amount:.2f}{unit}, and of budget.maxCost {left:.2f}{unit} is left."
    if budget.max_duration and hours > (left_hours := seconds(budget.max_duration) / 3600 - spent_hours):
        return f"By prepare's estimate this training takes {hours:.1f} hours, and of budget.maxDuration {left_hours:.1f} are left."
    return None


def within(o: Observed, d: Draft) -> Draft:
    """May training go on, as far as the budget is concerned? Of all attempts of the FineTune, whatever their revisions, and for money of
    what scored them."""
    budget = o.spec.budget
    if budget is None or d.blocked or d.revision.artifact:
        return d
    attempt = running(d)
    if attempt is None and budget.max_cost is not None and price(o) is None:
        return d.block(conditions.FAILED, _unpriced(o), reason=conditions.PRICE_UNKNOWN)
    over = _over(budget, spent(o, d, attempt))
    if over is None:
        return d
    if attempt:
        if ended(o, attempt):
            return d
        d = halted(o, d, attempt, "OverBudget").note("Warning", conditions.BUDGET_EXHAUSTED, over).end("train", o.now)
    return d.block(conditions.FAILED, over, reason=conditions.BUDGET_EXHAUSTED)


def uncounted(o: Observed, d: Draft) -> Draft:
    """Says of an attempt that runs without a price that its money is not counted: the limit may have come after it."""
    budget, attempt = o.spec.budget, running(d)
    if budget is None or budget.max_cost is None or attempt is None or (attempt.gpu_hour if attempt.began else price(o)) is not None:
        return d
    told = _unpriced(o)
    if price(o) is not None:
        told = "budget.maxCost does not count it: it began without a price. Set suspend for a moment: what begins then counts"
    return replace(d, message=f"{d.message}; attempt {attempt.number} goes on, and {told}"[:1024])


def _over(budget: Budget, cost: Cost) -> str | None:
    """Which part of the budget is spent, and the fix."""
    fix = "Raise it: training goes on from the last checkpoint."
    if budget.max_duration and float(cost.hours) * 3600 >= seconds(budget.max_duration):
        return f"budget.maxDuration {budget.max_duration} is spent: training has taken {float(cost.hours):.2f} hours. {fix}"
    amount = paid(cost)
    if budget.max_cost and amount and amount >= float(budget.max_cost):
        unit = f" {budget.currency}" if budget.currency else ""
        gpu_hours = float(cost.gpu_hours) + (float(cost.scoring.gpu_hours) if cost.scoring else 0.0)
        who = "training and scoring have" if cost.scoring else "training has"
        return f"budget.maxCost {budget.max_cost} is spent: {who} cost {amount:.2f}{unit} for {gpu_hours:.2f} GPU hours. {fix}"
    return None


def _unpriced(o: Observed) -> str:
    name = o.spec.compute.accelerator
    what = f"the operator's profile {name} has no hourlyPrice" if name else "training without an accelerator has no price"
    return f"budget.maxCost cannot be kept: {what}. Use budget.maxDuration, or let the price be set (the chart's value profiles)."
