"""Evaluations as the report tells them: rows, answers and scores that are made up, with a fixed seed."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from finetune_trainer.config import GateConfig, SpentConfig
from finetune_trainer.evaluate import advice, comparison
from finetune_trainer.evaluate.report import Report
from finetune_trainer.evaluate.rows import ScoredRow, TestRow

SYSTEM = "You write SQLite queries. The tables: customers(id, name, city), orders(id, customer_id, total, placed)"
NOTES = ("does not run: no such column: towns", "other rows than the reference query's")


def made(**changes: Any) -> dict[str, Any]:
    """A revision.json."""
    losses = [[step, 2.2 * math.exp(-step / 40) + 0.35 + 0.03 * math.sin(step)] for step in range(1, 151)]
    validations = [[step, 2.3 * math.exp(-step / 40) + 0.42 + max(0, step - 90) * 0.002] for step in range(25, 151, 25)]
    document: dict[str, Any] = {
        "model": {"source": "hf://HuggingFaceTB/SmolLM2-135M-Instruct", "digest": "sha256:" + "ab" * 32},
        "license": "apache-2.0",
        "data": {"path": "/work/data/6364d116", "digest": "sha256:" + "cd" * 32},
        "rows": {"train": 256, "validation": 32, "test": 64},
        "method": {"type": "LoRA", "objective": "SFT", "lora": {"rank": 16, "alpha": 32, "targetModules": []}},
        "training": {"learningRate": 1e-3, "epochs": 3, "seed": 17, "tokensPerStep": None},
        "result": {"step": 150, "totalSteps": 150, "bestStep": 100, "seconds": 312, "tokens": 26401, "tokensPerSecond": 140.2},
        "curves": {"losses": losses, "validations": validations},
        "digest": "sha256:" + "ef" * 32,
        "time": "2026-11-29T09:00:00Z",
    }
    return {**document, **changes}


def forgetting(percent: float = 6.2, kinds: Sequence[str] = ("prose", "questions", "languages", "code"), **changes: Any) -> dict[str, Any]:
    """What a probe found: a rise of so many percent, more or less of each kind of text."""

    def figures(rise: float, texts: int, base: float) -> dict[str, Any]:
        tuned = {name: value * (1 + rise / 100) for name, value in (("perplexity", base), ("low", base * 0.7), ("high", base * 1.4))}
        return {
            "percent": rise, "low": rise - 60 / texts, "high": rise + 70 / texts, "texts": texts, "tokens": 57 * texts,
            "base": {"perplexity": base, "low": base * 0.7, "high": base * 1.4}, "tuned": tuned, "kl": 0.0612, "klP95": 0.1668,
            "agreement": 0.9134,
        }  # fmt: skip

    every = {kind: figures(percent * (0.4 + 0.4 * n), 12, 30.0 / (n + 1)) for n, kind in enumerate(kinds)}
    return {**figures(percent, 40, 24.83), "prompts": "sha256:" + "99d2" * 16, "kinds": every, **changes}


def scored(metric: str, count: int, share: float, seed: int) -> list[ScoredRow]:
    """Rows of which that share is right; of Loss all have a loss around minus that."""
    draw = random.Random(seed)
    found = []
    for index in range(count):
        right = draw.random() < share
        notes = {} if right else {metric: draw.choice(NOTES)}
        if metric == "Loss":
            found.append(ScoredRow(str(index), None, {"Loss": -share + draw.gauss(0, 0.2)}))
        else:
            answer = f"SELECT COUNT(*) FROM orders WHERE total > {index if right else index + 1}"
            found.append(ScoredRow(str(index), answer, {metric: float(right), "ExactMatch": float(right and index % 3 > 0)}, notes))
    return found


def questions(count: int, text: str = "How many customers ordered more than {} items?") -> list[TestRow]:
    """So many questions with their answers."""
    return [
        TestRow(
            str(n),
            ({"role": "system", "content": SYSTEM}, {"role": "user", "content": text.format(n)}),
            f"SELECT COUNT(*) FROM orders WHERE total > {n}",
        )
        for n in range(count)
    ]


def report(
    metric: str = "SqlExecution", count: int = 64, shares: tuple[float, float] = (0.1, 0.85), reference: str = "base", **changes: Any
) -> Report:
    """The report of one metric (and where it looks at answers, of ExactMatch); `shares` are what base and tuned have right."""
    before, after, test = scored(metric, count, shares[0], 1), scored(metric, count, shares[1], 2), questions(count)
    names = [metric] if metric == "Loss" else [metric, "ExactMatch"]
    compared = comparison.metrics(names, after, before, 95)
    pairs = comparison.pairs(metric, test, after, before)
    document = changes.pop("made", made())
    validations = (document.get("curves") or {}).get("validations") or []
    facts = advice.Facts(compared[0], pairs, document.get("result") or {}, validations)
    known: dict[str, Any] = {
        "finetune": "ml/shop", "revision": "6364d116", "reference": reference, "compared": compared, "pairs": pairs, "excluded": 0,
        "confidence": 95.0, "advice": advice.advise(facts), "made": document, "rows": document.get("rows") or {},
        "gate": GateConfig.model_validate(
            {"minScore": 0.8, "minImprovement": 0.05, "maxForgettingPercent": 5} if metric != "Loss" else {}
        ),
        "spent": SpentConfig.model_validate(
            {"gpus": 8, "gpuHour": 2.5, "currency": "USD", "estimatedSeconds": 400, "estimatedMemoryBytes": 2**34}
        ),
    }  # fmt: skip
    return Report(**{**known, **changes})
