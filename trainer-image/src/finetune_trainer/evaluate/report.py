"""The evaluation's report for people: one HTML page, and the model card with the results, beside the scores.

Invariant: the page stands alone (no script, no outside address), and whatever came with data, answers or names is escaped. It draws what
the gate asks; the verdict is the operator's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from finetune_trainer import card, layout, pages
from finetune_trainer.advice import Advice, listed, read
from finetune_trainer.config import EconomicsConfig, GateConfig, ReportConfig, RunConfig, ServerConfig, SpentConfig, need
from finetune_trainer.evaluate import advice, charts, comparison, examples, faithful, forgotten, prompted, worth
from finetune_trainer.evaluate.comparison import LOSS, Compared, Pair
from finetune_trainer.evaluate.rows import ScoredRow, TestRow
from finetune_trainer.evaluate.throughput import Answering
from finetune_trainer.pages import hours, number, section

PAGE = "report.html"
NOTHING = '<p class="quiet">Nothing that the numbers would say.</p>'
TURNS = {"right in both": "train", "now right": "good", "now wrong": "bad", "wrong in both": "test"}


@dataclass(frozen=True)
class Report:
    """Everything that is told. `made` is the artifact's revision.json (empty where it cannot be read), `rows` the counts of the prepared
    data, `confidence` the percent of all intervals, `forgetting` and `fidelity` what the probe found (None: it was not asked), `economics`
    what serving is compared with in money (None: nothing is), `answering` how fast the tuned model's server answered (None: not known),
    `server` what one is now, `advised` what was advised before the training, `few_shot` what examples in its prompt did for the reference,
    or why that is not known (None: nobody looked)."""

    finetune: str
    revision: str
    reference: str
    compared: Sequence[Compared]
    pairs: Sequence[Pair]
    excluded: int
    confidence: float
    advice: Sequence[Advice]
    gate: GateConfig
    spent: SpentConfig
    made: dict[str, Any]
    rows: dict[str, Any]
    forgetting: Mapping[str, Any] | None = None
    fidelity: Mapping[str, Any] | None = None
    economics: EconomicsConfig | None = None
    answering: Answering | None = None
    server: ServerConfig | None = None
    advised: Sequence[Advice] = ()
    few_shot: Mapping[str, Any] | None = None

    @property
    def gated(self) -> Compared:
        """The metric that the gate looks at."""
        return self.compared[0]

    @property
    def training(self) -> dict[str, Any]:
        """The result of the training."""
        return dict(self.made.get("result") or {})

    @property
    def curves(self) -> dict[str, list[list[float]]]:
        """Points of the losses and of the validation losses."""
        return {name: list(points) for name, points in (self.made.get("curves") or {}).items()}


def gather(
    config: RunConfig, asked: ReportConfig, test: Sequence[TestRow], tuned: Sequence[ScoredRow], reference: Sequence[ScoredRow],
    excluded: int, forgetting: Mapping[str, Any] | None = None, fidelity: Mapping[str, Any] | None = None,
    answering: Answering | None = None, few_shot: Mapping[str, Any] | None = None,
) -> Report:  # fmt: skip
    """What the report tells, from the scores and from what lies on the volume."""
    evaluation, data = need(config.evaluation, "evaluation"), need(config.data, "data")
    names = [metric.type for metric in evaluation.metrics]
    compared = comparison.metrics(names, tuned, reference, evaluation.confidence_percent)
    pairs = comparison.pairs(names[0], test, tuned, reference)
    made = manifest(asked.artifact, layout.ARTIFACT_MANIFEST) if asked.artifact else {}
    prepared = manifest(data.path, layout.DATA_MANIFEST)
    validations = (made.get("curves") or {}).get("validations") or []
    limit = asked.gate.max_forgetting_percent
    facts = advice.Facts(compared[0], pairs, dict(made.get("result") or {}), validations, forgetting, limit)
    said = advice.advise(facts)
    return Report(
        finetune=f"{config.finetune.namespace}/{config.finetune.name}",
        revision=config.finetune.revision,
        reference=asked.reference,
        compared=compared,
        pairs=pairs,
        excluded=excluded,
        confidence=evaluation.confidence_percent,
        advice=said,
        advised=[item for item in read(prepared.get("advice")) if item.code not in {later.code for later in said}],
        gate=asked.gate,
        spent=asked.spent,
        made=made,
        rows=dict(prepared.get("rows") or {}),
        forgetting=forgetting,
        fidelity=fidelity,
        economics=asked.economics,
        answering=answering,
        server=evaluation.server,
        few_shot=few_shot,
    )


def write(folder: Path, report: Report) -> None:
    """The page and the card, into the folder of the evaluation."""
    (folder / PAGE).write_text(render(report))
    if report.made:
        results = card.Results(report.reference, report.compared, report.confidence, report.forgetting, report.fidelity)
        (folder / card.CARD).write_text(card.render(report.made, results))


def render(report: Report) -> str:
    """The page."""
    who = (named(report.reference), "tuned")
    sections = (
        section("What to do next", listed(report.advice) or NOTHING),
        section("What was advised before", listed(report.advised)),
        section("Scores on the sealed test split", _scores(report)),
        section("General text, before and after", forgotten.section(report.forgetting, report.gate, report.confidence)),
        section("As served against as trained", faithful.section(report.fidelity, report.gate)),
        section("Rows that changed", _turned(report)),
        section("Training", _training(report)),
        section("Why answers are wrong", examples.reasons("of the tuned model", report.pairs)),
        examples.section("Rows that got better", comparison.changed(report.pairs, better=True), who),
        examples.section("Rows that got worse", comparison.changed(report.pairs, better=False), who),
        examples.section("Rows that neither model answers rightly", comparison.still_wrong(report.pairs), who),
        section("What it took", _table(_spent(report))),
        section("What it is worth", worth.section(report.economics, report.answering, report.server)),
        section("Where it comes from", _table(_provenance(report))),
    )
    title = f"Revision {report.revision} against {named(report.reference)}"
    return pages.document(title, f"for {report.finetune}", f"{_tiles(report)}{''.join(sections)}")


def manifest(folder: Path, name: str) -> dict[str, Any]:
    """A manifest, or nothing where the folder does not count."""
    try:
        return dict(layout.read_manifest(folder, name))
    except layout.Corrupt as error:
        print(f"not in the report: {error}", flush=True)
        return {}


def named(reference: str) -> str:
    """Whose scores those of the reference are."""
    return "the base model" if reference == "base" else f"revision {reference}"


def _tiles(report: Report) -> str:
    gated = report.gated
    shown = [(f"{gated.metric}, {named(report.reference)}", charts.value(gated.metric, gated.before))] if gated.before else []
    shown.append((f"{gated.metric}, tuned", charts.value(gated.metric, gated.after)))
    if gated.difference:
        shown.append(("better by", charts.difference(gated.metric, gated.difference)))
    shown += [("perplexity of general text", forgotten.rise(report.forgetting))] if forgotten.rise(report.forgetting) else []
    shown += worth.tiles(report.economics, report.answering, report.server)
    shown.append(("test rows", number(int(gated.after["n"]))))
    shown += [("left out: the live model was trained on them", number(report.excluded))] if report.excluded else []
    return pages.tiles(shown)


def _scores(report: Report) -> str:
    first, *others = report.compared
    drawn = charts.scores(first, named(report.reference), report.gate, prompted.bar(report.few_shot))
    drawn += "".join(charts.scores(compared, named(report.reference), None) for compared in others)
    tried = prompted.sentence(first.metric, report.few_shot)
    note = f"{tried} {_asked(report)} Bars are {report.confidence:g} % intervals of a bootstrap over rows; the difference is paired by row."
    meaning = comparison.meaning(compared.metric for compared in report.compared)
    return f'{drawn}<p class="quiet small">{escape(meaning)} {escape(note)}</p>'


def _asked(report: Report) -> str:
    """What the gate asks, in words."""
    gate, parts = report.gate, []
    if gate.min_score is not None:
        parts.append(f"a score of at least {charts.bare(report.gated.metric, gate.min_score)}")
    if report.reference == "base":
        limit = (
            "above 0" if gate.min_improvement is None else f"at least {charts.bare(report.gated.metric, gate.min_improvement, points=True)}"
        )
        parts.append(f"that the lower end of the difference is {limit}")
    elif gate.min_improvement_over_live is not None:
        limit = charts.bare(report.gated.metric, gate.min_improvement_over_live, points=True)
        parts.append(f"that the lower end of the difference is at least {limit}")
    else:
        parts.append("that the tuned model is not provably worse")
    return f"The gate asks of {report.gated.metric}: {' and '.join(parts)}."


def _turned(report: Report) -> str:
    if report.gated.metric == LOSS or not report.pairs:
        return ""
    counts = comparison.turned(report.pairs)
    total = sum(counts.values())
    bar = "".join(f'<i class="{TURNS[name]}" style="width:{100 * count / total:.3f}%"></i>' for name, count in counts.items() if count)
    legend = "".join(f'<span><span class="key {TURNS[name]}"></span>{name} <b>{number(count)}</b></span>' for name, count in counts.items())
    return f'<div class="bar">{bar}</div><div class="legend">{legend}</div>{_enough(report.gated.metric)}'


def _enough(metric: str) -> str:
    """From when on an answer is called right, where that is not the whole."""
    least = comparison.enough(metric)
    return f'<p class="quiet small">An answer is called right here from a {escape(metric)} of {least:g} on.</p>' if least < 1 else ""


def _training(report: Report) -> str:
    curves, result = report.curves, report.training
    step = int(result.get("step") or 0)
    stopped = step if result.get("stoppedEarly") else None
    drawn = charts.curve(curves.get("losses") or [], curves.get("validations") or [], result.get("bestStep"), stopped)
    if not drawn:
        return ""
    ends = _stopped(report) if stopped else "all steps were made"
    steps = f"{number(step)} of {number(int(result.get('totalSteps') or 0))} steps: {ends}."
    return f'{drawn}<p class="quiet small">{escape(steps)}</p>'


def _stopped(report: Report) -> str:
    """Why training stopped early, and what was kept of it."""
    best, patience = report.training.get("bestStep"), (report.made.get("training") or {}).get("earlyStoppingPatience")
    since = f" since step {number(best)}" if best else ""
    times = f" in {number(patience)} evaluations (training.earlyStopping.patience)" if patience else ""
    kept = f". The weights of step {number(best)} are kept" if best else ""
    return f"it stopped early, for the validation loss has not fallen{since}{times}{kept}"


def _table(facts: dict[str, str]) -> str:
    body = "".join(f'<tr><td>{escape(name)}</td><td class="number">{escape(value)}</td></tr>' for name, value in facts.items() if value)
    return f"<table><tbody>{body}</tbody></table>" if body else ""


def _spent(report: Report) -> dict[str, str]:
    spent, result = report.spent, report.training
    seconds = result.get("seconds")
    gpu_hours = spent.gpus * float(seconds or 0) / 3600
    return {
        "time of this training": hours(float(seconds)) if seconds else "",
        "time that prepare expected": hours(spent.estimated_seconds) if spent.estimated_seconds else "",
        "memory of a rank that prepare expected": f"{spent.estimated_memory_bytes / 2**30:.1f} GiB" if spent.estimated_memory_bytes else "",
        "tokens a second": number(round(result["tokensPerSecond"])) if result.get("tokensPerSecond") else "",
        "tokens": number(int(result["tokens"])) if result.get("tokens") else "",
        "GPU hours": f"{gpu_hours:.2f}" if gpu_hours else "",
        "cost of these hours": f"{gpu_hours * spent.gpu_hour:,.2f} {spent.currency}".strip() if gpu_hours and spent.gpu_hour else "",
        "test rows, answered by one server": worth.speed(report.answering) if report.answering else "",
    }


def _provenance(report: Report) -> dict[str, str]:
    made, rows = report.made, report.rows
    method, training = made.get("method") or {}, made.get("training") or {}
    return {
        "base model": str((made.get("model") or {}).get("source", "")),
        "base model's digest": str((made.get("model") or {}).get("digest", ""))[:23],
        "data's digest": str((made.get("data") or {}).get("digest", ""))[:23],
        "rows": f"{rows.get('train', '?')} training, {rows.get('validation', '?')} validation, {rows.get('test', '?')} test"
        if rows
        else "",
        "method": f"{method.get('type', '')} {method.get('objective', '')}".strip(),
        "learning rate": f"{training['learningRate']:g}" if training.get("learningRate") else "",
        "epochs": f"{training['epochs']:g}" if training.get("epochs") else "",
        "artifact's digest": str(made.get("digest", ""))[:23],
        "trained": str(made.get("time", "")),
    }
