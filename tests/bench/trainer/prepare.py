"""What preparing many short rows costs: a generated file through the real `finetune-trainer prepare`; last line JSON.

    python3 tools/env.py trainer python -m tests.bench.trainer.prepare --rows 1000000

Rows have about 40 words. Of a hundred, two repeat an earlier row and five differ from one in a single word.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from finetune_trainer import fetch
from finetune_trainer.config import RunConfig

from tests.trainer.support import make_config

ROOT = Path(__file__).resolve().parents[3]
REPEATED, ALIKE = 0.02, 0.05
WORDS_EACH = 20
CHANGES: dict[str, dict[str, object]] = {
    "first": {},
    "again": {},
    "seed": {"split": {"train": 75, "validation": 10, "test": 15, "seed": 18}},
    "redact": {"quality": {"personalData": "Redact"}},
}


def rows(count: int, seed: int = 17) -> Iterator[dict[str, str]]:
    """`count` rows; the words are drawn with Zipf's weights."""
    chance = random.Random(seed)
    words = [_word(chance) for _ in range(20_000)]
    weights = list(accumulate(1 / rank for rank in range(1, len(words) + 1)))
    kept: list[list[str]] = []
    for _ in range(count):
        roll = chance.random()
        if kept and roll < REPEATED + ALIKE:
            text = list(chance.choice(kept))
            if roll >= REPEATED:
                text[chance.randrange(len(text))] = _word(chance)
        else:
            text = chance.choices(words, cum_weights=weights, k=2 * WORDS_EACH)
            if len(kept) < 10_000:
                kept.append(text)
        yield {"prompt": " ".join(text[:WORDS_EACH]), "completion": " ".join(text[WORDS_EACH:])}


def _word(chance: random.Random) -> str:
    return "".join(chance.choice(("ba", "de", "ki", "lo", "mu", "ne", "po", "ri", "sta", "tu")) for _ in range(chance.randint(1, 4)))


def model(folder: Path, tool: str) -> Path:
    """A model made by one of the image's tools."""
    subprocess.run([sys.executable, ROOT / "trainer-image" / "tools" / f"{tool}.py", folder], check=True, stdout=sys.stderr)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--model", default="smollm2", choices=("smollm2", "tiny_model"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="finetune-bench-") as scratch:
        work = Path(scratch)
        source = work / "rows.jsonl"
        with source.open("w") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows(options.rows))
        base = model(work / "model", options.model)
        fetch.main(RunConfig.model_validate(make_config("fetch", work, base)))
        config = make_config("prepare", work, base, source, data__quality={}, training__maxSequenceLength=2048, data__train={
            "source": "pvc://rows/rows.jsonl", "mount": str(source), "format": "Auto",
        })  # fmt: skip
        print(json.dumps(measure(work, config, options.rows, source.stat().st_size)))


def measure(work: Path, config: dict[str, object], count: int, size: int) -> dict[str, object]:
    """Run prepare as a process of its own, then as other revisions of the same data: the same, split by another seed, redacted."""
    figures: dict[str, object] = {"rows": count, "file_mib": round(size / 2**20)}
    for revision, (name, change) in enumerate(CHANGES.items()):
        data = {**config["data"], **change, "path": str(work / "data" / f"{revision:08x}")}  # type: ignore[dict-item]
        (work / "run.json").write_text(json.dumps({**config, "data": data}))
        started = time.monotonic()
        command = [sys.executable, "-m", "finetune_trainer", "prepare", "--config", str(work / "run.json")]
        environment = {
            "TOKENIZERS_PARALLELISM": "false",  # as in the image
            "FINETUNE_PROGRESS_PORT": "0",
            "FINETUNE_TERMINATION_LOG": str(work / "termination"),
        }
        usage = run(command, environment)
        figures[f"{name}_s"], figures[f"{name}_cpu_s"] = round(time.monotonic() - started, 1), round(usage.ru_utime + usage.ru_stime, 1)
        figures[f"{name}_peak_mib"] = round(usage.ru_maxrss / 1024)
        result = json.loads((work / "termination").read_text())
        figures[name] = {**result["rows"], "tokens": result["tokens"]["train"]}
        figures["cache_mib"] = round(sum(path.stat().st_size for path in (work / "data" / "cache").rglob("*") if path.is_file()) / 2**20)
    return figures


def run(command: list[str], environment: dict[str, str]) -> resource.struct_rusage:
    """What the process used. Raises CalledProcessError where it fails."""
    process = subprocess.Popen(command, stdout=sys.stderr, env={**os.environ, **environment})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
    process.returncode = 0
    return usage


if __name__ == "__main__":
    main()
