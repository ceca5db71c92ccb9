"""kstatus itself, by which Flux, kpt and `cli-utils` wait, on FineTunes of real runs."""

from __future__ import annotations

from tests.gitops.kstatus import statuses
from tests.gitops.recorded import ANSWERS, load


def test_kstatus_gives_the_right_answer_for_every_recorded_finetune() -> None:
    answers = dict(zip(ANSWERS, statuses(map(load, ANSWERS)), strict=True))
    assert answers == {file: kstatus for file, (kstatus, _) in ANSWERS.items()}


def test_without_the_default_of_the_status_a_new_finetune_would_be_called_ready() -> None:
    new = load("new")
    assert new["status"] == {"observedGeneration": -1}
    assert statuses([new, {k: v for k, v in new.items() if k != "status"}]) == ["InProgress", "Current"]
