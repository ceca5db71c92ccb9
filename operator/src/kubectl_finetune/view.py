"""What a FineTune looks like at a glance: lines of text from the object, its Events and what a stage says of itself. Pure.

Whatever comes from the cluster is shown without its control characters: nobody's text moves the cursor.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from finetune_operator import conditions as c
from finetune_operator import names
from finetune_operator.decide.rollout.states import ACTIVE
from finetune_operator.status import duration
from finetune_operator.workloads.objects import time

Object = Mapping[str, Any]
Paint = Callable[[str, str], str]
NAME: Final = 11  # columns of the left margin, where a block says what it is
BAR: Final = 30
EVENTS: Final = 6
STAGES: Final = (*names.STAGES, "deploy", "rollout", "bake")
GOOD, BAD, BUSY, QUIET, BOLD = "good", "bad", "busy", "quiet", "bold"
ANSI: Final = {GOOD: "32", BAD: "31", BUSY: "33", QUIET: "2", BOLD: "1"}
SINCE: Final = re.compile(r" \(since [0-9TZ:-]+\)$")  # at the end of Ready's message; the view says how long
VERDICTS: Final = {"Pass": GOOD, "Fail": BAD, "Insufficient": BUSY, "Error": BAD}


@dataclass(frozen=True)
class Seen:
    """All that is shown. `progress` is a stage's own answer, fresher than the status; absent where it cannot be asked."""

    finetune: Object
    now: datetime
    events: Sequence[Object] = ()
    progress: Object = field(default_factory=dict)
    width: int = 110
    paint: Paint = lambda text, _: text

    @property
    def status(self) -> Object:
        """The FineTune's status."""
        return self.finetune.get("status") or {}


def plain(text: str, style: str) -> str:
    """The text as it is, for what is no terminal."""
    return text


def coloured(text: str, style: str) -> str:
    """The text for a terminal."""
    return f"\x1b[{ANSI[style]}m{text}\x1b[0m" if text else text


def headline(seen: Seen) -> str:
    """One line: the phase, and the figures that matter in it."""
    figures = [str(seen.status.get("phase", c.PENDING)), *_figures(seen)]
    return ", ".join([*figures, _message(seen)] if len(figures) == 1 else figures)


def screen(seen: Seen) -> list[str]:
    """All of it, a block after the other; a block without anything to say is left out."""
    blocks = (_head, _stages, _training, _scores, _advice, _rollout, _asked, _expected, _cost, _economics, _events)
    lines = [line for block in blocks for line in _block(seen, block)]
    return [line.rstrip() for line in lines]


Block = Callable[[Seen], Iterator[str]]


def _block(seen: Seen, block: Block) -> list[str]:
    lines = list(block(seen))
    return [*lines, ""] if lines else []


def _figures(seen: Seen) -> list[str]:
    if seen.status.get("phase") == c.TRAINING:
        return [text for text in (_percent(_trained(seen)), _step(_trained(seen)), _loss(_trained(seen)), _left(_trained(seen))) if text]
    if _rolls(seen):
        rollout = seen.status["rollout"]
        return [f"{rollout['weight']} % of the users", f"step {rollout.get('step', 0)} of {rollout.get('steps', 0)}"]
    return []


def _head(seen: Seen) -> Iterator[str]:
    meta, spec, status = seen.finetune["metadata"], seen.finetune["spec"], seen.status
    phase = str(status.get("phase", c.PENDING))
    style = GOOD if phase in c.READY_PHASES else BAD if phase in c.STALLED_PHASES else BUSY
    since = f"for {_ago(status.get('phaseSince'), seen.now)}" if status.get("phaseSince") else ""
    reason = status.get("reason") if status.get("reason") not in (None, phase) else ""
    title = f"{meta.get('namespace', '')}/{meta['name']}"
    yield "  ".join(part for part in (seen.paint(title, BOLD), seen.paint(phase, style), _clean(reason or ""), since) if part)
    objective = spec["method"].get("objective") or ""
    facts = [f"{spec['model']['source']}", f"{spec['method']['type']} {objective}".strip()]
    facts += [f"revision {status['revision']}"] if status.get("revision") else []
    facts += [f"live {status['liveRevision']}"] if status.get("liveRevision") else []
    yield seen.paint(_clean("  ·  ".join(facts)), QUIET)
    if message := _message(seen):
        yield ""
        yield from textwrap.wrap(message, seen.width)


def _stages(seen: Seen) -> Iterator[str]:
    """Each stage of the newest revision with its time: done, under way, or to come."""
    status = seen.status
    known = {s["name"]: s for s in status.get("stages") or () if s["revision"] == status.get("revision")}
    if not known:
        return
    parts = []
    for name in STAGES:
        stage = known.get(name)
        if stage is None:
            parts.append(seen.paint(f"· {name}", QUIET))
        elif stage.get("finished"):
            parts.append(f"{seen.paint('✓', GOOD)} {name} {_between(stage['started'], stage['finished'])}")
        else:
            parts.append(f"{seen.paint('▸', BUSY)} {name} {_ago(stage['started'], seen.now)}")
    yield "   ".join(parts)


def _training(seen: Seen) -> Iterator[str]:
    training = _trained(seen)
    if not training or seen.status.get("revision") != (seen.status.get("training") or {}).get("revision"):
        return
    running = seen.status.get("phase") == c.TRAINING
    left = _left(training) if running else ""
    yield _row("Training", f"{_bar(int(training.get('percent') or 0))}  {'   '.join(t for t in (_step(training), left) if t)}")
    saved = training.get("checkpoint") or {}
    details = [
        _loss(training),
        _number(training, "validationLoss", "validation loss {:.4f}"),
        _number(training, "tokensPerSecond", "{:,.0f} tokens/s"),
    ]
    details += [f"checkpoint at step {saved['step']}"] if saved.get("step") is not None else []
    attempts = [a for a in seen.status.get("attempts") or () if a["revision"] == seen.status.get("revision")]
    details += [f"attempt {attempts[-1]['number']}"] if len(attempts) > 1 else []
    if text := "   ".join(d for d in details if d):
        yield _row("", text)
    if text := _kept(training):
        yield _row("", text)


def _kept(training: Object) -> str:
    """Which step's weights are kept where it is not the last one's, and why training stopped before its steps were over."""
    best = training.get("bestStep")
    if training.get("stoppedEarly"):
        since = f" since step {best:,}, whose weights are kept" if best is not None else ""
        return f"stopped early: the validation loss has not fallen{since}"
    return f"the weights of step {best:,} are kept, of the lowest validation loss" if best not in (None, training.get("step")) else ""


def _scores(seen: Seen) -> Iterator[str]:
    """Base and tuned with their intervals, what is between them, and what the gate says of it."""
    evaluation = seen.status.get("evaluation")
    scored = _newest(seen).get("baseline")
    if evaluation is None and scored is None:
        return
    metric = (evaluation or scored or {})["metric"]
    reference = evaluation["reference"] if evaluation else "base"
    few = (scored or {}).get("fewShot") or {}
    rows = [(reference, (evaluation or {}).get("baseline") or (scored or {}).get("score"), "score")]
    rows += [(f"{few['examples']}-shot", few["score"], "score")] if few.get("score") else []
    if evaluation:
        rows += [("tuned", evaluation.get("tuned"), "score"), ("gain", evaluation.get("improvement"), "difference")]
    for number, (who, value, key) in enumerate(r for r in rows if r[1]):
        yield _row("Scores" if number == 0 else "", f"{metric if number == 0 else '':<14} {who:<9} {_score(metric, value or {}, key)}")
    if evaluation and (text := _forgot(evaluation.get("forgetting"))):
        yield _row("", f"{'':<14} {'general':<9} {text}")
    if evaluation and (text := _diverged(evaluation.get("fidelity"))):
        yield _row("", f"{'':<14} {'served':<9} {text}")
    if evaluation and evaluation.get("verdict"):
        verdict = evaluation["verdict"]
        yield _row("", f"{'':<14} {'gate':<9} {seen.paint(verdict, GOOD if verdict == 'Passed' else BAD)}")


def _forgot(found: Object | None) -> str:
    """How general text fares: the rise of its perplexity with the interval, and the divergence from the base model."""
    if not found:
        return ""
    if found.get("percent") is None:
        return _clean(f"not measured: {found.get('unmeasured', '')}")
    rise, low, high = (float(found[key]) for key in ("percent", "low", "high"))
    return f"perplexity {rise:+.1f} % [{low:+.1f}, {high:+.1f}]   KL {float(found['kl']):.3f}"


def _diverged(found: Object | None) -> str:
    """How far the model as served is from the model as trained."""
    if not found:
        return ""
    if found.get("kl") is None:
        return _clean(f"not measured: {found.get('unmeasured', '')}")
    turned = float(found["differsPercent"])
    return f"KL to the trained {float(found['kl']):.2g}, at most {float(found['klMax']):.2g}   {turned:.1f} % other first choices"


def _advice(seen: Seen) -> Iterator[str]:
    """What the stages of the newest revision say should be thought of, or done next."""
    texts = [f"{item['message']} {item.get('fix', '')}" for item in seen.status.get("advice") or ()]
    lines = [
        line for text in texts for line in textwrap.wrap(_clean(text), seen.width - NAME - 2, initial_indent="· ", subsequent_indent="  ")
    ]
    yield from (_row("Advice" if number == 0 else "", line) for number, line in enumerate(lines))


def _rollout(seen: Seen) -> Iterator[str]:
    """Where the users are, and what the guards say."""
    rollout = seen.status.get("rollout")
    if not rollout or not rollout.get("steps"):
        return
    facts = [f"step {rollout.get('step', 0)} of {rollout['steps']}", rollout["state"]]
    if _rolls(seen) and (left := _ahead(rollout.get("nextStepAt"), seen.now)):
        facts.append(f"next in {left}")
    experiment = rollout.get("experiment") or {}
    if experiment and not experiment.get("until"):
        facts.append(f"A/B test for {_ago(experiment.get('since'), seen.now)}")
    yield _row("Rollout", f"{_bar(int(rollout['weight']))}  {'   '.join(facts)}")
    name = f"rollout {rollout['name']}: " if rollout.get("name") else ""
    between = "instead of" if rollout["state"] == "Promoted" else "beside"
    yield _row("", f"{name}revision {rollout['revision']} {between} {_revision_of(seen, rollout['stable'])}")
    for number, line in enumerate(rollout.get("evidence") or ()):
        verdict, _, evidence = str(line).partition(": ")
        first, *rest = textwrap.wrap(_clean(evidence), max(40, seen.width - NAME - 13)) or [""]
        shown = seen.paint(f"{verdict:<12}", VERDICTS[verdict]) if verdict in VERDICTS else f"{_clean(verdict):<12}"
        yield _row("Guards" if number == 0 else "", f"{shown} {first}")
        yield from (_row("", f"{'':<12} {text}") for text in rest)


def _asked(seen: Seen) -> Iterator[str]:
    control = seen.status.get("control")
    if control and (_rolls(seen) or control["outcome"] == "Ignored"):
        lines = textwrap.wrap(_clean(f"{control['asked']} ({control['outcome']}): {control['message']}"), seen.width - NAME)
        yield from (_row("Asked for" if number == 0 else "", line) for number, line in enumerate(lines))


def _expected(seen: Seen) -> Iterator[str]:
    """What training the newest revision takes, by what prepare has measured."""
    revision = _newest(seen)
    estimate = revision.get("estimate")
    if estimate and not revision.get("artifact"):
        yield _row("Expected", f"{duration(int(estimate.get('seconds', 0)))} of training{_money(estimate.get('cost'), seen)}")


def _cost(seen: Seen) -> Iterator[str]:
    """What training and scoring have cost, and what serving does by the hour."""
    for number, line in enumerate(_costs(seen, seen.status.get("cost") or {})):
        yield _row("" if number else "Cost", line)


def _costs(seen: Seen, cost: Object) -> Iterator[str]:
    scoring, serving = cost.get("scoring") or {}, cost.get("serving") or {}
    if float(cost.get("hours", 0)):
        gpus = f"   {float(cost.get('gpuHours', 0)):.2f} GPU hours" if float(cost.get("gpuHours", 0)) else ""
        yield f"{duration(round(3600 * float(cost['hours'])))} of training{gpus}{_money(cost.get('amount'), seen)}"
    if scoring:
        hours = duration(round(3600 * float(scoring["hours"])))
        yield f"{hours} of scoring   {float(scoring['gpuHours']):.2f} GPU hours{_money(scoring.get('amount'), seen)}"
    if serving:
        gpus = f"   {serving['gpus']} GPUs" if serving.get("gpus") else ""
        hourly = f"{money} an hour" if (money := _money(serving.get("perHour"), seen)) else ""
        yield f"{serving['pods']} model server{'s' if serving['pods'] != 1 else ''}{gpus}{hourly}"


def _money(amount: Any, seen: Seen) -> str:
    """Nothing where the operator's profile has no price."""
    budget = (seen.finetune.get("spec") or {}).get("budget") or {}
    currency = (seen.status.get("cost") or {}).get("currency") or budget.get("currency") or ""
    return f"   {float(amount):,.2f} {_clean(str(currency))}".rstrip() if amount else ""


def _economics(seen: Seen) -> Iterator[str]:
    """What serving costs against what the spec names, by today's prices."""
    lines = textwrap.wrap(_clean((seen.status.get("economics") or {}).get("message") or ""), seen.width - NAME)
    yield from (_row("Economics" if number == 0 else "", line) for number, line in enumerate(lines))


def _events(seen: Seen) -> Iterator[str]:
    newest = sorted(seen.events, key=lambda e: str(e.get("lastTimestamp") or e.get("eventTime") or ""))[-EVENTS:]
    for number, event in enumerate(newest):
        when = f"{_ago(event.get('lastTimestamp') or event.get('eventTime'), seen.now):>7} ago"
        style = BAD if event.get("type") == "Warning" else QUIET
        text = _clean(f"{event.get('reason', '')}: {event.get('message', '')}")
        yield _row("Events" if number == 0 else "", f"{seen.paint(when, style)}  {_cut(text, seen.width - NAME - 13)}")


def _trained(seen: Seen) -> Object:
    """The training's figures: what it says itself where it was asked, over what the status last said."""
    status = dict(seen.status.get("training") or {})
    return {**status, **{k: v for k, v in seen.progress.items() if v is not None}} if seen.progress.get("stage") == "train" else status


def _percent(training: Object) -> str:
    return f"{training['percent']} %" if training.get("percent") is not None else ""


def _step(training: Object) -> str:
    return f"step {training['step']:,} of {training['totalSteps']:,}" if training.get("totalSteps") else ""


def _loss(training: Object) -> str:
    return _number(training, "loss", "loss {:.4f}")


def _left(training: Object) -> str:
    return f"about {duration(int(training['etaSeconds']))} left" if training.get("etaSeconds") else ""


def _number(values: Object, key: str, form: str) -> str:
    return form.format(float(values[key])) if values.get(key) is not None else ""


def _score(metric: str, value: Object, key: str) -> str:
    """`80.0 % [70.0, 90.0], n=40`; losses are minus bits per byte and shown so; a difference has its sign, in points."""
    sign = "+" if key == "difference" else ""
    if metric == "Loss":
        scale, form, unit = (1.0 if sign else -1.0), f"{sign}.4f", " bits per byte"
    else:
        scale, form, unit = 100.0, f"{sign}.1f", " points" if sign else " %"
    bounds = [value.get("low"), value.get("high")]
    ends = sorted(scale * float(b) for b in bounds if b is not None)
    interval = f"  [{ends[0]:{form}}, {ends[1]:{form}}]" if len(ends) == 2 else ""
    return f"{scale * float(value[key]):{form}}{unit}{interval}" + (f"  n={value['n']}" if value.get("n") is not None else "")


def _rolls(seen: Seen) -> bool:
    return (seen.status.get("rollout") or {}).get("state") in ACTIVE


def _revision_of(seen: Seen, arm: str) -> str:
    return next((f"{a['revision']}" for a in seen.status.get("arms") or () if a["name"] == arm), arm)


def _newest(seen: Seen) -> Object:
    """What the status knows of the revision that the spec asks for."""
    return next((r for r in seen.status.get("revisions") or () if r["name"] == seen.status.get("revision")), {})


def _message(seen: Seen) -> str:
    ready: Object = next((x for x in seen.status.get("conditions") or () if x["type"] == c.READY), {})
    return _clean(SINCE.sub("", str(ready.get("message") or ("" if seen.status.get("phase") else "no operator has seen it yet"))))


def _row(name: str, text: str) -> str:
    return f"{name:<{NAME}}{text}"


def _bar(percent: int) -> str:
    done = max(0, min(100, percent))
    return f"{'█' * (done * BAR // 100)}{'░' * (BAR - done * BAR // 100)} {percent:>3} %"


def _clean(text: str) -> str:
    return "".join(ch if ch.isprintable() else " " for ch in text)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(1, width - 1)] + "…"


def _ago(stamp: Any, now: datetime) -> str:
    moment = time(stamp)
    return duration(max(0, int((now - moment).total_seconds()))) if moment else "?"


def _ahead(stamp: Any, now: datetime) -> str:
    moment = time(stamp)
    left = int((moment - now).total_seconds()) if moment else 0
    return duration(left) if left > 0 else ""


def _between(start: Any, end: Any) -> str:
    moment = time(end)
    return _ago(start, moment) if moment else "?"


def utc_now() -> datetime:
    """The present, as the status tells times."""
    return datetime.now(UTC)
