"""Fixtures, and the table that ends the tier: each check with its worst difference and what was allowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.numerics import subjects
from tests.trainer.conftest import _any_progress_port, tiny_model

__all__ = ["_any_progress_port", "tiny_model"]
Measured = Callable[[str, float, float], None]
_TABLE: dict[str, tuple[float, float]] = {}


@pytest.fixture(scope="session")
def measured() -> Measured:
    """`measured(check, difference, tolerance)`: into the table, and fail if it is too much. Of one check the worst is kept."""

    def record(check: str, difference: float, tolerance: float) -> None:
        worst = max(difference, _TABLE.get(check, (difference, 0))[0])
        _TABLE[check] = (worst, tolerance)
        assert difference <= tolerance, f"{check}: differs by {difference:.3g}, allowed is {tolerance:.3g}"

    return record


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table."""
    if not _TABLE:
        return
    width = max(map(len, _TABLE))
    terminalreporter.write_line(f"\n{'check':<{width}}  worst difference  tolerance")
    for check, (difference, tolerance) in sorted(_TABLE.items()):
        terminalreporter.write_line(f"{check:<{width}}  {difference:>16.2e}  {tolerance:>9.0e}")


@pytest.fixture(scope="session")
def plain_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a template that puts nothing after the end of a turn."""
    return subjects.plain(tiny_model, tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture(scope="session")
def work(plain_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work volume with the fetched model and prepared rows of both objectives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_PROGRESS_PORT", "0")
        return subjects.prepared(tmp_path_factory.mktemp("work"), plain_model)
