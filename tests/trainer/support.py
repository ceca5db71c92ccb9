"""What the trainer's tests share: run configurations, rows, and stages as real processes.

Processes are forked from a server that has imported torch and transformers once: each still is a process of its own,
in a session of its own, with its own signals, exit code and termination message, but starts in a moment.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devcluster import loopback

PRELOADED = [
    "deepspeed",
    "finetune_trainer.__main__",
    "finetune_trainer.data.prepare",
    "finetune_trainer.evaluate.cli",
    "finetune_trainer.serve.cli",
    "finetune_trainer.train.assemble",
    "finetune_trainer.train.launch",
    "peft.tuners.lora.model",
    "torch.distributed.launcher.api",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.tokenization_auto",
]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(PRELOADED)
TINY_MODEL = Path(__file__).resolve().parents[2] / "trainer-image" / "tools" / "tiny_model.py"
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ADJECTIVES = ("small", "green", "old", "round", "cheap", "heavy", "loud", "soft")
NOUNS = ("lamp", "chair", "drum", "kite", "spoon", "clock", "scarf", "boat")


def rows(count: int = 64) -> list[dict[str, str]]:
    """`count` (at most 64) different instruction rows with answers of unequal length."""
    pairs = [(adjective, noun) for adjective in ADJECTIVES for noun in NOUNS][:count]
    return [
        {"instruction": f"Name the {a} {n}.", "output": f"This {n} is {a}" + ", really" * (index % 4) + "."}
        for index, (a, n) in enumerate(pairs)
    ]


def write_rows(path: Path, values: list[Any]) -> Path:
    """JSON lines; strings are written as they are (broken lines)."""
    path.write_text("".join((value if isinstance(value, str) else json.dumps(value)) + "\n" for value in values))
    return path


def make_tiny_model(folder: Path) -> Path:
    """Fill `folder` with the model that the image has at /opt/models/tiny-random."""
    spec = importlib.util.spec_from_file_location("tiny_model", TINY_MODEL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(folder)
    return folder


def make_config(stage: str, work: Path, model: Path, source: Path | None = None, **overrides: Any) -> dict[str, Any]:
    """A run configuration as the operator writes it. Overrides are `block__field=value` (`training__epochs=2`)."""
    document: dict[str, Any] = {
        "version": 1,
        "stage": stage,
        "finetune": {"namespace": "ml", "name": "bot", "uid": "0b6c", "revision": "1f2e3d4c", "attempt": 0},
        "model": {"source": f"image://{model}", "revision": "", "path": str(work / "models" / "tiny"), "allowRemoteCode": False},
    }
    if stage != "fetch":
        document["data"] = {
            "path": str(work / "data" / "1f2e3d4c"),
            "train": {"source": "configmap://rows/train.jsonl", "mount": str(source), "format": "Auto"},
            "validation": None, "test": None, "split": {"train": 75, "validation": 10, "test": 15, "seed": 17},
            "quality": {"minResponseCharacters": 1, "maxTokens": 4000, "onTooLong": "Drop", "maxInvalidPercent": 5, "deduplicate": True},
            "mix": [],
        }  # fmt: skip
    if stage in ("prepare", "train"):
        document["method"] = {
            "type": "LoRA", "objective": "SFT", "lora": {"rank": 4, "alpha": 8, "dropout": 0, "targetModules": []},
        }  # fmt: skip
        document["training"] = {
            "epochs": 1, "learningRate": 0.003, "maxSequenceLength": 256, "tokensPerStep": 300, "precision": "FP32",
            "schedule": "Cosine", "seed": 17, "checkpoint": {"everySeconds": None, "everySteps": None, "keep": 2},
        }  # fmt: skip
        document["compute"] = {
            "accelerator": "", "nodes": 1, "gpusPerNode": 0, "sharding": "Auto", "threads": 1, "masterAddress": "127.0.0.1",
            "masterPort": 29500, "stallSeconds": 60, "graceSeconds": 20,
        }  # fmt: skip
    if stage == "train":
        document["run"] = {"path": str(work / "revisions" / "1f2e3d4c" / "a0"), "resumeFrom": []}
    if stage == "evaluate":
        document["evaluation"] = {
            "name": "baseline", "endpoint": "http://127.0.0.1:1/v1", "model": "bot", "path": str(work / "evaluations" / "baseline"),
            "reference": None, "excludeTrainedOn": None, "maxNewTokens": 8, "concurrency": 4, "confidencePercent": 95,
            "metrics": [{"type": "ExactMatch"}],
        }  # fmt: skip
    for path, value in overrides.items():
        *blocks, name = path.split("__")
        target = document
        for block in blocks:
            target = target[block]
        target[name] = value
    return document


def wait_until(what: str, holds: Callable[[], Any], seconds: float = 60) -> Any:
    """The first true value of `holds`, asked again and again."""
    deadline = time.monotonic() + seconds
    while not (value := holds()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(0.02)
    return value


@dataclass
class Stage:
    """A running `finetune-trainer`. Its session is killed whole."""

    process: Any
    folder: Path

    @property
    def log(self) -> str:
        """All it has printed."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def message(self) -> dict[str, Any]:
        """Its termination message."""
        return dict(json.loads((self.folder / "termination").read_text()))

    @property
    def losses(self) -> dict[int, float]:
        """Loss by step, of the steps that the log tells."""
        lines = [line.split() for line in self.log.splitlines() if line.startswith("step ")]
        return {int(words[1].partition("/")[0]): float(words[3]) for words in lines}

    def signal(self, number: signal.Signals) -> None:
        """Send to the pod's first process alone, as the kubelet does."""
        os.kill(self.process.pid, number)

    def handles(self, number: signal.Signals) -> Stage:
        """Wait until it has a handler of its own for this signal."""
        status = Path(f"/proc/{self.process.pid}/status")
        wait_until(f"a handler for {number.name}", lambda: int(_field(status, "SigCgt"), 16) >> (number - 1) & 1)
        return self

    def freeze(self) -> None:
        """Stop everything that it started, as a hanging file system does."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def kill(self) -> None:
        """SIGKILL everything that it started, as the loss of a node does."""
        self.process.kill()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def ends(self, code: int, seconds: float = 90) -> Stage:
        """Wait for the end and check the exit code."""
        self.process.join(seconds)
        assert self.process.exitcode == code, f"exit code {self.process.exitcode}, not {code}\n{self.log[-6000:]}"
        return self

    def reaches(self, step: int) -> Stage:
        """Wait until the log tells of `step`."""
        wait_until(f"step {step} ({self.log[-2000:]})", lambda: max(self.losses, default=0) >= step or not self.process.is_alive())
        assert self.process.is_alive(), self.log
        return self


@contextmanager
def running(folder: Path, argv: list[str], environment: Mapping[str, str] | None = None) -> Iterator[Stage]:
    """A `finetune-trainer` with these arguments; nothing of it is left after the block."""
    folder.mkdir(parents=True, exist_ok=True)
    variables = {"FINETUNE_PROGRESS_PORT": "0", "FINETUNE_TERMINATION_LOG": str(folder / "termination"), **(environment or {})}
    with tempfile.TemporaryDirectory(prefix="stage-") as scratch:  # a short path: sockets are made there, and what is killed leaves its own
        process = CONTEXT.Process(target=_become, args=(argv, {"TMPDIR": scratch, **variables}, str(folder / "log")))
        process.start()
        stage = Stage(process, folder)
        try:
            yield stage
        finally:
            stage.kill()
            process.join(10)


@contextmanager
def training(folder: Path, config: dict[str, Any], **environment: str) -> Iterator[list[Stage]]:
    """The pods of a gang, one process each, as the operator starts them."""
    nodes = config["compute"]["nodes"]
    config = {**config, "compute": {**config["compute"], "masterPort": loopback.free_ports(1)[0]}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(config))
    argv = ["train", "--config", str(folder / "run.json")]

    @contextmanager
    def pods(index: int) -> Iterator[list[Stage]]:
        if index == nodes:
            yield []
            return
        own = {"JOB_COMPLETION_INDEX": str(index), "POD_UID": f"{folder.name}-{index}", **environment}
        with running(folder / f"pod-{index}", argv, own) as stage, pods(index + 1) as others:
            yield [stage, *others]

    with pods(0) as stages:
        yield stages


def on_ranks(count: int, function: Callable[..., Any], *arguments: Any, dies: int | None = None) -> list[Any]:
    """What `function(*arguments)` returns in each of `count` processes, which can join one group of ranks. Rank `dies` need not answer."""
    found = {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(loopback.free_ports(1)[0]),
        "DS_ACCELERATOR": "cpu",
        "LOCAL_SIZE": "1",
    }
    pipes = [CONTEXT.Pipe(duplex=False) for _ in range(count)]
    processes = [
        CONTEXT.Process(target=_be_rank, args=(writer, {**found, "RANK": str(rank), "LOCAL_RANK": "0"}, function, arguments))
        for rank, (_, writer) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    for _, writer in pipes:
        writer.close()
    try:
        results = [_answer(reader) for reader, _ in pipes]
    finally:
        for process in processes:
            process.kill()
            process.join(10)
    for rank, result in enumerate(results):
        if isinstance(result, BaseException) and rank != dies:
            raise result
    return results


def _answer(reader: Any) -> Any:
    try:
        return reader.recv() if reader.poll(90) else RuntimeError("no answer")
    except EOFError:
        return RuntimeError("it ended without an answer")


def _be_rank(writer: Any, environment: dict[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    try:
        writer.send(function(*arguments))
    except BaseException as error:
        traceback.print_exception(error)
        writer.send(RuntimeError(f"{type(error).__name__}: {error}"))


def _field(status: Path, name: str) -> str:
    return next(line.split()[1] for line in status.read_text().splitlines() if line.startswith(f"{name}:"))


def _become(argv: list[str], environment: dict[str, str], log: str) -> None:
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    tempfile.tempdir = None  # it is another one now
    from finetune_trainer.__main__ import main

    sys.exit(main(argv))
