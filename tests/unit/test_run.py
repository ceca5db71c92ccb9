"""The runner of all tests, when it is told to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.run import ROOT

TEST = """
import os, pathlib, time
HERE = pathlib.Path(__file__).parent

def test_slow():
    try:
        (HERE / "began").write_text(str(os.getpid()))
        time.sleep(600)
    finally:
        (HERE / "put-away").touch()
"""
RUN = "import sys; from tests import run; run.TIERS = (run.Tier('slow', 'dev', (sys.argv.pop(1),), 1),); sys.exit(run.main())"


def ignore_interrupts() -> None:
    """As a shell has it for what it starts in its background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.parametrize("before", [None, ignore_interrupts], ids=["at a terminal", "in a shell's background"])
def test_asked_to_end_it_ends_the_tests_which_put_away_what_they_started(before: Callable[[], None] | None, tmp_path: Path) -> None:
    (tmp_path / "test_slow.py").write_text(TEST)
    began = tmp_path / "began"
    command = [sys.executable, "-c", RUN, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=before) as runner:
        deadline = time.monotonic() + 60
        while not (began.exists() and began.read_text()):
            assert runner.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        runner.send_signal(signal.SIGTERM)
        runner.communicate(timeout=60)
    assert runner.returncode == 143
    assert (tmp_path / "put-away").exists()
    assert not os.path.exists(f"/proc/{began.read_text()}")
