"""Training as pods run it: processes, signals, exit codes, checkpoints, and what resumes from them."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer import layout

from tests.trainer.support import Stage, make_config, training

EPOCHS = 5
STEPS = 60
RELATIVE = 1e-5
Attempt = Callable[..., dict[str, Any]]


@pytest.fixture
def attempt(work: Path, tiny_model: Path, tmp_path: Path) -> Attempt:
    """Makes the configuration of attempt N, whose folders lie in the test's own."""

    def make(number: int, nodes: int, resume: tuple[str, ...] = (), **overrides: Any) -> dict[str, Any]:
        return make_config(
            "train", work, tiny_model, run__path=str(tmp_path / f"a{number}"), run__resumeFrom=list(resume), compute__nodes=nodes,
            **{"training__epochs": EPOCHS, **overrides},
        )  # fmt: skip

    return make


@pytest.fixture(scope="module")
def undisturbed(work: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """One rank that trained to the end: what all others are compared with."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = make_config("train", work, tiny_model, run__path=str(folder / "a0"), training__epochs=EPOCHS)
    with training(folder / "pods", config) as [pod]:
        return pod.ends(0)


def same_losses(found: dict[int, float], expected: dict[int, float]) -> None:
    """Every step that `found` has, has the expected loss."""
    assert found
    assert found == pytest.approx({step: expected[step] for step in found}, rel=RELATIVE)


def test_two_ranks_give_the_losses_of_one(attempt: Attempt, undisturbed: Stage, tmp_path: Path) -> None:
    with training(tmp_path / "pods", attempt(0, 2)) as [first, second]:
        first.ends(0)
        second.ends(0)
        assert sorted(first.losses) == list(range(1, STEPS + 1))
        same_losses(first.losses, undisturbed.losses)
        assert not second.losses, "rank 0 alone reports"
        assert not (second.folder / "termination").exists(), "only rank 0's pod tells the result"
    assert first.message["loss"] == pytest.approx(undisturbed.message["loss"], rel=RELATIVE)
    assert first.message["validationLoss"] == pytest.approx(undisturbed.message["validationLoss"], rel=RELATIVE)
    assert first.message["order"] == undisturbed.message["order"]
    artifact = Path(first.message["artifact"])
    assert layout.verify(artifact, layout.ARTIFACT_MANIFEST)["digest"] == first.message["digest"]
    modules = json.loads((artifact / "adapter_config.json").read_text())["target_modules"]
    assert modules == sorted(modules), "no order of chance in what the digest is of"


def test_a_gang_that_is_asked_to_stop_agrees_on_one_checkpoint_and_the_next_attempt_goes_on_from_it(
    attempt: Attempt, undisturbed: Stage, tmp_path: Path
) -> None:  # fmt: skip
    with training(tmp_path / "stopped", attempt(0, 2)) as pods:
        pods[0].reaches(5)
        pods[1].signal(signal.SIGTERM)
        for _ in range(3):  # a kubelet that was restarted says it again
            pods[0].signal(signal.SIGTERM)
            time.sleep(0.01)
        for pod in pods:
            pod.ends(25)
        stopped = [pod.message for pod in pods]
    assert [message["error"]["class"] for message in stopped] == ["interrupted"] * 2
    assert stopped[0]["step"] == stopped[1]["step"]
    found = list(layout.checkpoints(Path(stopped[0]["folder"])).glob("step-*"))
    assert [str(path) for path in found] == [stopped[0]["checkpoint"]]
    same_losses(pods[0].losses, undisturbed.losses)

    with training(tmp_path / "resumed", attempt(1, 2, (stopped[0]["folder"],))) as [first, _]:
        first.ends(0)
    assert first.message["resumedFromStep"] == stopped[0]["step"]
    assert min(first.losses) == stopped[0]["step"] + 1
    same_losses(first.losses, undisturbed.losses)
    for name in ("loss", "validationLoss"):
        assert first.message[name] == pytest.approx(undisturbed.message[name], rel=RELATIVE)
    assert first.message["order"] == undisturbed.message["order"], "every step had the same rows, across the stop"


def test_the_loss_of_one_pod_ends_the_other_as_infrastructure_and_one_rank_can_go_on(
    attempt: Attempt, undisturbed: Stage, tmp_path: Path
) -> None:  # fmt: skip
    with training(tmp_path / "killed", attempt(0, 2, training__checkpoint={"everySeconds": None, "everySteps": 4, "keep": 2})) as pods:
        pods[0].reaches(9)
        pods[1].kill()
        pods[0].ends(24)
        message = pods[0].message
    assert message["error"]["reason"] == "PeerLost"
    saved = int(Path(message["checkpoint"]).name.removeprefix("step-"))
    assert 0 <= message["step"] - saved <= 4
    assert len(list(layout.checkpoints(Path(message["folder"])).iterdir())) == 2, "as many as are to be kept"

    with training(tmp_path / "alone", attempt(1, 1, (message["folder"],))) as [pod]:
        pod.ends(0)
    resumed = pod.message["resumedFromStep"]
    assert saved <= resumed <= message["step"], "the next one may be committed before the loss is noticed, and not told any more"
    same_losses(pod.losses, undisturbed.losses)
    assert pod.message["order"] == undisturbed.message["order"], "however many ranks shared a step"


def test_an_attempt_after_a_finished_one_reports_its_artifact_and_trains_nothing(
    attempt: Attempt, undisturbed: Stage, tmp_path: Path
) -> None:  # fmt: skip
    folder = undisturbed.message["folder"]
    with training(tmp_path / "again", attempt(1, 1, (folder,))) as [pod]:
        pod.ends(0)
    assert pod.message == undisturbed.message
    assert not pod.losses


def test_a_stop_before_the_gang_is_complete_ends_at_once(attempt: Attempt, tmp_path: Path) -> None:
    document = attempt(0, 2)
    with training(tmp_path / "pods", document) as [first, second]:
        second.kill()
        first.handles(signal.SIGTERM).signal(signal.SIGTERM)
        first.ends(25, seconds=20)
        assert first.message["error"]["reason"] == "Interrupted"


def test_a_rank_that_hangs_ends_the_other_as_stalled(attempt: Attempt, tmp_path: Path) -> None:
    with training(tmp_path / "pods", attempt(0, 2, compute__stallSeconds=8)) as [first, second]:
        first.reaches(5)
        second.freeze()
        first.ends(22)
    assert first.message["error"]["class"] == "stalled"
    assert re.search(r"this rank was waiting for the other ranks in \w+ \(distributed\.py, line \d+\)", first.message["error"]["message"])
    assert "in all_reduce\n" in first.log, "the whole stack of each thread"
    assert first.message["step"] >= 5


def test_what_no_retry_mends_ends_with_20_and_names_the_field(attempt: Attempt, tmp_path: Path) -> None:
    cases = {
        "a sharding that does not go with the method": (
            {"method__type": "QLoRA", "compute__sharding": "ZeRO3"}, "compute.sharding ZeRO3 with method.type QLoRA is not supported",
        ),
        "rows that the objective does not learn from": (
            {"method__objective": "DPO", "data__train": {"source": "pvc://a/b", "format": "Messages"}}, "DPO learns from Preference rows",
        ),
        "target modules that the model lacks": (
            {"method__lora": {"rank": 4, "alpha": 8, "dropout": 0, "targetModules": ["no_such_layer"]}},
            "the model has no no_such_layer; it has down_proj, gate_proj, k_proj",
        ),
        "a field that nobody knows": ({"training__learnRate": 1}, "learnRate"),
    }  # fmt: skip
    for sentence, (overrides, expected) in cases.items():
        with training(tmp_path / sentence, attempt(0, 1, **overrides)) as [pod]:
            pod.ends(20)
            assert expected in json.dumps(pod.message["error"]), sentence


def test_a_missing_input_is_infrastructure(attempt: Attempt, tmp_path: Path) -> None:
    with training(tmp_path / "pods", attempt(0, 1, data__path=str(tmp_path / "nothing"))) as [pod]:
        pod.ends(24)
        assert pod.message["error"]["reason"] == "InputMissing"


def test_a_learning_rate_beyond_all_measure_ends_non_finite_with_23(attempt: Attempt, tmp_path: Path) -> None:
    with training(tmp_path / "pods", attempt(0, 1, training__learningRate=1e30)) as [pod]:
        pod.ends(23)
        error = pod.message["error"]
    assert (error["class"], error["fix"]) == ("nonFinite", "Lower training.learningRate.")
    assert not layout.is_complete(layout.artifact(Path(pod.message["folder"])))


def test_a_learning_rate_of_10_stays_finite_on_this_model_but_learns_less_than_a_sane_one(
    attempt: Attempt, undisturbed: Stage, tmp_path: Path
) -> None:  # fmt: skip
    with training(tmp_path / "pods", attempt(0, 1, training__learningRate=10)) as [pod]:
        pod.ends(0)
    assert pod.message["validationLoss"] > undisturbed.message["validationLoss"]
