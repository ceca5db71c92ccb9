"""The command line and what a running stage tells, without a model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError

import pytest
from finetune_trainer import hardware
from finetune_trainer.__main__ import main
from finetune_trainer.progress import Progress, serving

from tests.trainer.support import make_config

OPENMP = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS")


def command(tmp_path: Path, *arguments: str) -> tuple[int, str, dict[str, Any]]:
    """Exit code, output and termination message of a fresh interpreter."""
    log = tmp_path / "termination"
    environment = {**os.environ, "FINETUNE_TERMINATION_LOG": str(log), "FINETUNE_PROGRESS_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "finetune_trainer", *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout + done.stderr, json.loads(log.read_text()) if log.exists() else {}


def test_a_stage_runs_in_a_fresh_interpreter(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(make_config("fetch", tmp_path, tiny_model)))
    code, output, message = command(tmp_path, "fetch", "--config", str(tmp_path / "run.json"))
    assert (code, message["stage"]) == (0, "fetch"), output
    assert json.dumps(message) in output, "the result stands in the log too"


CONFIGURATIONS = {
    "is not there": (None, "ConfigurationMissing", "cannot read"),
    "is no JSON": ("{", "ConfigurationInvalid", "is not JSON"),
    "is another stage's": ('"fetch"', "ConfigurationInvalid", "the configuration is for fetch, not for prepare"),
    "lacks blocks": ('"prepare"', "ConfigurationInvalid", "stage prepare needs the blocks data, method, training, compute"),
    "has another version": ('"fetch", "version": 2', "ConfigurationInvalid", "version: Input should be 1"),
}


@pytest.mark.parametrize(("stage", "reason", "words"), CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_a_configuration_ends_with_20_that(stage: str | None, reason: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    if stage is not None:
        finetune, model = '{"namespace": "a", "name": "b", "revision": "c"}', '{"source": "image:///x", "path": "/y"}'
        whole = f'{{"version": 1, "finetune": {finetune}, "model": {model}, "stage": {stage}}}'
        path.write_text(stage if stage == "{" else whole)
    code, output, message = command(tmp_path, "prepare", "--config", str(path))
    assert (code, message["error"]["reason"]) == (20, reason), output
    assert words in message["error"]["message"]


def fetched(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            return response.status, response.read().decode()
    except HTTPError as error:
        with error:
            return error.code, ""


def test_progress_is_told_as_json_and_as_metrics() -> None:
    progress = Progress("train")
    with serving(progress, 0) as port:
        progress.update(state="training", step=40, totalSteps=300, loss=float("nan"))
        document = json.loads(fetched(port, "/progress")[1])
        assert {key: document[key] for key in ("stage", "state", "step", "totalSteps", "loss")} == {
            "stage": "train", "state": "training", "step": 40, "totalSteps": 300, "loss": None,
        }  # fmt: skip
        assert 'finetune_trainer_step{stage="train"} 40' in fetched(port, "/metrics")[1]
        assert "finetune_trainer_loss" not in fetched(port, "/metrics")[1], "what is not a number is left out"
        assert 0 <= document["quietSeconds"] < 60
        assert fetched(port, "/healthz") == (200, "ok\n")
        assert fetched(port, "/secrets")[0] == 404


def test_a_port_that_is_taken_ends_no_stage() -> None:
    with serving(Progress("fetch"), 0) as port, serving(Progress("fetch"), port) as second:
        assert second == 0


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[str | None, str | None]]:
    """What of them is set now: nothing at first, on a machine whose container may use three cores."""
    for name in OPENMP:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setattr(hardware, "cpu_limit", lambda: 3)
    return lambda: (os.environ.get(OPENMP[0]), os.environ.get(OPENMP[1]))


def test_a_servers_threads_sleep_while_they_wait(threads: Any) -> None:
    assert main(["serve", "--help"]) == 0
    assert threads() == ("PASSIVE", "3")


@pytest.mark.parametrize(
    ("stage", "expected"), {"evaluate": ("PASSIVE", "3"), "probe": ("PASSIVE", "3"), "fetch": (None, None)}.items()
)  # fmt: skip
def test_what_scores_has_no_more_threads_than_cores_and_none_that_spins(
    stage: str, expected: tuple[str | None, str | None], threads: Any, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr("finetune_trainer.__main__.import_module", lambda _: SimpleNamespace(main=lambda _: seen.append(threads())))
    (tmp_path / "run.json").write_text(json.dumps(make_config("fetch" if stage == "fetch" else "evaluate", tmp_path, tiny_model)))
    assert main([stage, "--config", str(tmp_path / "run.json")]) == 0
    assert seen == [expected]


def test_what_a_pods_environment_says_of_threads_holds(threads: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OPENMP:
        monkeypatch.setenv(name, "7")
    assert main(["serve", "--help"]) == 0
    assert threads() == ("7", "7")
