"""Fixtures: the tiny model of the image, fetched and with prepared rows, made once a session."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from multiprocessing import forkserver
from pathlib import Path

import openai
import pytest
import torch
from finetune_trainer import fetch
from finetune_trainer.config import RunConfig
from finetune_trainer.data import prepare
from finetune_trainer.serve.loading import load

from tests.trainer import hosting, support


def pytest_sessionstart() -> None:
    """Let the processes' server import what it holds while this process does the same.

    Killed processes leave semaphores, which Python's resource tracker would tell after pytest's closing line."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ["PYTHONWARNINGS"] = "ignore::UserWarning:multiprocessing.resource_tracker"
    forkserver.ensure_running()


@pytest.fixture(autouse=True)
def _any_progress_port(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FINETUNE_PROGRESS_PORT", "0")
    monkeypatch.setenv("FINETUNE_TERMINATION_LOG", str(tmp_path / "termination"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder that the image has at /opt/models/tiny-random."""
    return support.make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def work(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work volume with the fetched model and 64 prepared rows."""
    patch = pytest.MonkeyPatch()
    patch.setenv("FINETUNE_PROGRESS_PORT", "0")
    folder = tmp_path_factory.mktemp("work")
    source = support.write_rows(folder / "rows.jsonl", support.rows())
    fetch.main(RunConfig.model_validate(support.make_config("fetch", folder, tiny_model)))
    prepare.main(RunConfig.model_validate(support.make_config("prepare", folder, tiny_model, source)))
    patch.undo()
    return folder


@pytest.fixture(scope="session")
def host(tiny_model: Path) -> Iterator[hosting.Hosted]:
    """The tiny model, served in float32: rounding turns no greedy choice."""
    with hosting.hosted(load(tiny_model, None, dtype=torch.float32)) as found:
        yield found


@pytest.fixture
def client(host: hosting.Hosted) -> Iterator[openai.OpenAI]:
    """OpenAI's own, which tries nothing twice."""
    with openai.OpenAI(base_url=host.url, api_key="-", max_retries=0) as found:
        yield found


@pytest.fixture
async def concurrent(host: hosting.Hosted) -> AsyncIterator[openai.AsyncOpenAI]:
    """The same for several requests at once."""
    async with openai.AsyncOpenAI(base_url=host.url, api_key="-", max_retries=0) as found:
        yield found
