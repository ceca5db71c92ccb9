"""Who is silent for too long is told where it stands."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from finetune_trainer.train.distributed import Ranks
from finetune_trainer.train.watchdog import Watchdog, whereabouts

ALONE = Ranks(0, 0, 1, torch.device("cpu"))


def test_a_rank_without_a_beat_says_in_what_work_it_hangs() -> None:
    found: list[tuple[float, str]] = []
    watchdog = Watchdog(0.2, lambda silent: found.append((silent, whereabouts())))
    watchdog.start()
    ALONE.first_does(lambda: time.sleep(0.8), lambda: None, 0)
    [(silent, place)] = found
    assert silent > 0.2
    assert re.fullmatch(r"at work in _done \(distributed\.py, line \d+\)", place)


def test_who_reads_a_sum_that_its_gpu_has_not_yet_waits_for_the_other_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Queued:
        def __int__(self) -> int:
            with ThreadPoolExecutor(1) as pool:
                places.append(pool.submit(whereabouts).result())
            return 1

    places: list[str] = []
    monkeypatch.setattr(Ranks, "sum", lambda *_: Queued())
    assert ALONE.all(True)
    assert re.fullmatch(r"waiting for the other ranks in all \(distributed\.py, line \d+\)", places[0])


def test_a_rank_that_beats_or_has_ended_is_left_alone() -> None:
    found: list[float] = []
    watchdog = Watchdog(0.5, found.append)
    watchdog.start()
    for _ in range(10):
        time.sleep(0.1)
        watchdog.beat()
    watchdog.stop()
    time.sleep(0.8)
    assert not found
