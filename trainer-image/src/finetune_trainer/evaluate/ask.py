"""Questions and their answers, which are kept as they come; and `finetune-trainer ask`, which hands them to an image of the user's."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import aiohttp

from finetune_trainer.config import EvaluationConfig, RunConfig, need
from finetune_trainer.evaluate import client, custom, rows, scoring
from finetune_trainer.evaluate.answers import Kept
from finetune_trainer.evaluate.client import Endpoint, Reply
from finetune_trainer.evaluate.rows import TestRow
from finetune_trainer.evaluate.running import Meter, interruptible
from finetune_trainer.progress import Progress, serving


def main(config: RunConfig) -> None:
    """Leave the answers where the metric's image finds them; those of an evaluation that counts are not asked for again."""
    evaluation, data = need(config.evaluation, "evaluation"), need(config.data, "data")
    folder = next(metric.custom.folder for metric in evaluation.metrics if metric.custom)
    with serving(progress := Progress("evaluate")):
        test, _ = rows.without_trained_on(rows.test_rows(data.path), evaluation.exclude_trained_on)
        if rows.finished(evaluation.path) is None:
            scoring.check(scoring.scorers(evaluation.metrics), test)
            replies = answered(config, test, progress).replies
            scoring.require_answers(test, replies)
            found = {row: reply.answer for row, reply in replies.items()}
        else:
            found = {row.id: row.answer for row in rows.read(evaluation.path)}
        custom.hand_out(folder, test, found)


def answered(
    config: RunConfig, test: Sequence[TestRow], progress: Progress, *, suffix: str = "", before: int = 0, after: int = 0,
) -> Kept:  # fmt: skip
    """A reply to every row: those that are kept of before, whatever scored them, and of the server at evaluation.endpoint the rest.
    `before` and `after` are how many others the evaluation asks before and after these. Raises UserError, Infrastructure or TrainerError
    (no server), Interrupted."""
    evaluation = need(config.evaluation, "evaluation")
    kept = Kept(kept_as(evaluation, suffix), _fingerprint(config.model.path, evaluation, test))
    open_rows = [row for row in test if row.id not in kept.replies]
    if not open_rows:
        kept.close()
        return kept
    endpoint = Endpoint(evaluation.endpoint.rstrip("/"), evaluation.model, evaluation.concurrency, evaluation.max_new_tokens)
    meter = Meter(progress, before + len(test) + after, before + len(test) - len(open_rows))

    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            progress.update(state="waiting", note=f"for the model server at {endpoint.url}")
            await client.wait_ready(session, endpoint)
            progress.update(state="answering", note="")
            meter.start()
            last = time.monotonic()

            def heard(row: TestRow, reply: Reply) -> None:
                nonlocal last
                now = time.monotonic()
                kept.add(row.id, replace(reply, seconds=now - last))
                last = now
                meter.advance()

            await client.ask_all(session, endpoint, open_rows, heard)

    try:
        asyncio.run(interruptible(run()))
    finally:
        kept.close()
    return kept


def kept_as(evaluation: EvaluationConfig, suffix: str = "") -> Path:
    """The name under which answers are kept while they come: that of what is asked, for a metric that is corrected asks nothing again."""
    return evaluation.path.with_name(f"{evaluation.name}{suffix}")


def _fingerprint(model: Path, evaluation: EvaluationConfig, test: Sequence[TestRow]) -> str:
    """What the kept answers answer: endpoint, model, length and questions, and by what server: their time is its."""
    server = evaluation.server.model_dump() if evaluation.server else None
    loaded = [str(model), str(evaluation.adapter_path)]
    asked = [evaluation.name, evaluation.endpoint, evaluation.model, evaluation.max_new_tokens, server, loaded]
    document = json.dumps([asked, [asdict(row) for row in test]], sort_keys=True)
    return hashlib.sha256(document.encode()).hexdigest()
