"""What a FineTune looks like at a glance, by objects of real runs."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_operator import conditions as c
from kubectl_finetune.view import Seen, coloured, headline, screen

from tests.gitops.recorded import ANSWERS
from tests.unit.plugin.cluster import NOW, recorded, rolling

SCORE = {"score": "0.8", "low": "0.7", "high": "0.9", "n": 40}


def text(finetune: dict[str, Any], **changes: Any) -> str:
    return "\n".join(screen(Seen(finetune, NOW, **changes)))


@pytest.mark.parametrize("file", ANSWERS)
def test_every_recorded_finetune_shows_its_phase_and_what_it_waits_for(file: str) -> None:
    finetune = recorded(file)
    shown, status = text(finetune), finetune["status"]
    assert status.get("phase", c.PENDING) in shown.splitlines()[0]
    message = next((x["message"] for x in status.get("conditions", ()) if x["type"] == "Ready"), "no operator has seen it yet")
    assert message.split(" (since ")[0] in " ".join(shown.split())
    assert all(len(line) <= 130 for line in shown.splitlines())
    assert headline(Seen(finetune, NOW)).startswith(status.get("phase", c.PENDING))


def test_a_rollout_shows_users_scores_guards_and_what_is_asked_of_it() -> None:
    evidence = ["Pass: errors: canary 0.0 % of 200 requests", "Insufficient: latency: 5 of 50 canary requests seen"]
    asked = {"asked": "pause:a1b2c3d4", "outcome": "Accepted", "message": "no further step is taken", "time": "2026-11-24T22:32:50Z"}
    finetune = rolling(nextStepAt="2026-11-24T22:37:00Z", evidence=evidence)
    finetune["status"]["control"] = asked
    events = [
        {"type": "Normal", "reason": "Rollout", "message": f"step {n}", "lastTimestamp": f"2026-11-24T22:32:{n:02}Z"} for n in range(9)
    ]
    assert (
        text(finetune, events=events)
        == """\
guard/bot  RollingOut  for 41s
image:///opt/models/tiny  ·  LoRA  ·  revision 6364d116  ·  live base

step 1 of 2: moving 10 % of the users

✓ fetch 2s   ✓ prepare 1s   ✓ baseline 1s   ✓ train 2s   ✓ evaluate 2s   ✓ deploy 1s   ▸ rollout 41s   · bake

Training   ██████████████████████████████ 100 %  step 50 of 50
           loss 0.4000

Scores     ExactMatch     base      10.0 %  [0.0, 20.0]  n=40
                          tuned     80.0 %  [70.0, 90.0]  n=40
                          gain      +70.0 points  [+60.0, +80.0]  n=40
                          gate      Passed

Rollout    ███░░░░░░░░░░░░░░░░░░░░░░░░░░░  10 %  step 1 of 2   Holding   next in 4m
           rollout a1b2c3d4: revision 6364d116 beside base
Guards     Pass         errors: canary 0.0 % of 200 requests
           Insufficient latency: 5 of 50 canary requests seen

Asked for  pause:a1b2c3d4 (Accepted): no further step is taken

Cost       1s of training

Events         57s ago  Rollout: step 3
               56s ago  Rollout: step 4
               55s ago  Rollout: step 5
               54s ago  Rollout: step 6
               53s ago  Rollout: step 7
               52s ago  Rollout: step 8
"""
    )


def test_an_ab_test_says_for_how_long_it_runs_until_it_is_over() -> None:
    test = {"weight": 50, "since": "2026-11-22T22:33:00Z"}
    assert "A/B test for 48h00m" in text(rolling(experiment=test))
    assert "A/B test" not in text(rolling(experiment={**test, "until": "2026-11-24T22:33:00Z"}))


def test_what_a_stage_says_itself_is_fresher_than_the_status() -> None:
    training = {"revision": "6364d116", "attempt": 1, "step": 40, "totalSteps": 500, "percent": 8, "loss": "1.5", "updated": "x"}
    finetune = recorded("Training", training=training, attempts=[{"revision": "6364d116", "number": n} for n in (1, 2)])
    saved = {"step": 40, "time": "2026-11-24T22:32:55Z"}
    said = {
        "stage": "train", "step": 45, "totalSteps": 500, "percent": 9, "loss": 1.25, "validationLoss": None, "etaSeconds": 600,
        "tokensPerSecond": 1234.5, "checkpoint": saved,
    }  # fmt: skip
    shown = text(finetune, progress=said)
    assert "██░░░░░░░░░░░░░░░░░░░░░░░░░░░░   9 %  step 45 of 500   about 10m left" in shown
    assert "loss 1.2500   1,234 tokens/s   checkpoint at step 40   attempt 2" in shown
    assert "step 40 of 500" in text(finetune)
    assert headline(Seen(finetune, NOW, progress=said)) == "Training, 9 %, step 45 of 500, loss 1.2500, about 10m left"


KEPT = {
    "it stopped early": (
        {"stoppedEarly": True, "bestStep": 1200},
        "stopped early: the validation loss has not fallen since step 1,200, whose",
    ),
    "of a trainer that does not say which": ({"stoppedEarly": True}, "stopped early: the validation loss has not fallen\n"),
    "all steps, and an earlier one was better": ({"bestStep": 20}, "the weights of step 20 are kept, of the lowest validation loss"),
    "the last one was the best": ({"bestStep": 50}, ""),
    "nobody knows": ({}, ""),
}


@pytest.mark.parametrize(("told", "words"), KEPT.values(), ids=KEPT)
def test_whose_weights_are_kept(told: dict[str, Any], words: str) -> None:
    finetune = rolling()
    finetune["status"]["training"].update(told)
    shown = text(finetune)
    assert words in shown
    assert bool(words) == ("kept" in shown or "stopped" in shown)


def test_losses_are_bits_per_byte_and_smaller_is_better() -> None:
    evaluation = {
        "metric": "Loss", "reference": "base", "verdict": "Failed", "message": "m",
        "baseline": {"score": "-1.25", "low": "-1.5", "high": "-1", "n": 40}, "tuned": {"score": "-0.75", "n": 40},
        "improvement": {"difference": "0.5", "low": "0.25", "high": "0.75", "n": 40},
    }  # fmt: skip
    shown = text(recorded("Rejected-GateFailed", evaluation=evaluation))
    assert "base      1.2500 bits per byte  [1.0000, 1.5000]  n=40" in shown
    assert "tuned     0.7500 bits per byte  n=40" in shown
    assert "gain      +0.5000 bits per byte  [+0.2500, +0.7500]  n=40" in shown
    assert "gate      Failed" in shown


def test_what_was_forgotten_is_shown_below_the_scores() -> None:
    finetune = recorded("Live")
    finetune["status"]["evaluation"]["forgetting"] = {"percent": "6.2105", "low": "-0.5", "high": "8.25", "kl": "0.0612"}
    assert " general   perplexity +6.2 % [-0.5, +8.2]   KL 0.061" in text(finetune)
    finetune["status"]["evaluation"]["forgetting"] = {"unmeasured": "no room"}
    assert " general   not measured: no room" in text(finetune)


def test_what_examples_in_the_prompt_did_is_shown_below_the_base() -> None:
    finetune = recorded("Live")
    baseline = finetune["status"]["revisions"][-1]["baseline"]
    baseline["fewShot"] = {"examples": 4, "score": {"score": "0.25", "low": "0.125", "high": "0.375", "n": 16}}
    lines = text(finetune).splitlines()
    [place] = [number for number, line in enumerate(lines) if line.endswith(" 4-shot    25.0 %  [12.5, 37.5]  n=16")]
    assert " base " in lines[place - 1]
    assert " tuned " in lines[place + 1]
    baseline["fewShot"] = {"unmeasured": "no room"}
    assert "shot " not in text(finetune)


def test_how_far_what_is_served_is_from_what_was_trained_is_shown_below_the_scores() -> None:
    finetune = recorded("Live")
    finetune["status"]["evaluation"]["fidelity"] = {"kl": "0.00012345", "klMax": "0.25", "differsPercent": "0.5"}
    assert " served    KL to the trained 0.00012, at most 0.25   0.5 % other first choices" in text(finetune)
    finetune["status"]["evaluation"]["fidelity"] = {"unmeasured": "no room"}
    assert " served    not measured: no room" in text(finetune)


def test_advice_of_the_newest_revision_is_shown() -> None:
    finetune = recorded("Live")
    finetune["status"]["advice"] = [
        {"stage": "prepare", "code": "FewRows", "message": "There are few.", "fix": "Bring a larger data.train. " * 6},
        {"stage": "baseline", "code": "Other", "message": "Train on."},
    ]
    lines = text(finetune).splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("Advice     · There are few. Bring"))
    assert lines[first + 1].startswith(" " * 13)
    assert lines[first + 1].lstrip().startswith(("Bring", "a larger", "larger", "data.train."))
    assert "           · Train on." in lines


def test_money_is_shown_where_it_is_known() -> None:
    cost = {"hours": "1.5", "gpuHours": "12.0000", "amount": "30.25", "currency": "USD"}
    assert "Cost       1h30m of training   12.00 GPU hours   30.25 USD" in text(recorded("Live", cost=cost))


def test_what_training_is_expected_to_take_is_shown_until_it_is_done() -> None:
    finetune = recorded("Training")
    newest = finetune["status"]["revisions"][0]
    newest["estimate"] = {"seconds": 12000, "memoryBytes": 1, "passTokens": 1, "longest": 1}
    assert "Expected   3h20m of training\n" in text(finetune)
    newest["estimate"]["cost"], finetune["spec"]["budget"] = "133.33", {"currency": "USD"}
    assert "Expected   3h20m of training   133.33 USD\n" in text(finetune)
    newest["artifact"] = "/work/revisions/x/a1/artifact"
    assert "Expected" not in text(finetune)


def test_no_text_from_the_cluster_moves_the_cursor() -> None:
    finetune = rolling(evidence=["Fail: \x1b[2Jgone"])
    finetune["status"]["conditions"][0]["message"] = "a\x1b]0;title\x07b\nc"
    events = [{"type": "Warning", "reason": "\x1b[H", "message": "\r\x1b[31m", "lastTimestamp": "2026-11-24T22:32:00Z"}]
    assert "\x1b" not in text(finetune, events=events)
    assert "\r" not in text(finetune, events=events)
    styled = text(finetune, events=events, paint=coloured)
    assert "\x1b[31mFail" in styled
    assert "\x1b[2J" not in styled


def test_an_ignored_wish_is_shown_also_without_a_rollout() -> None:
    control = {"asked": "promote:x", "outcome": "Ignored", "message": "no rollout is running", "time": "2026-11-24T22:32:50Z"}
    assert "Asked for  promote:x (Ignored): no rollout is running" in text(recorded("Live", control=control))
    assert "Asked for" not in text(recorded("Live", control={**control, "outcome": "Accepted"}))


def test_what_scoring_cost_and_serving_costs_stand_beside_training() -> None:
    scoring = {"hours": "0.5000", "gpuHours": "2.0000", "amount": "5.0000"}
    cost = {"hours": "0", "gpuHours": "0", "currency": "USD", "scoring": scoring, "serving": {"pods": 2, "gpus": 8, "perHour": "20.0000"}}
    shown = text(recorded("Live", cost=cost))
    assert "Cost       30m of scoring   2.00 GPU hours   5.00 USD\n" in shown
    assert "           2 model servers   8 GPUs   20.00 USD an hour\n" in shown


def test_servers_without_a_price_cost_nothing_by_the_hour() -> None:
    shown = text(recorded("Live", cost={"hours": "0", "gpuHours": "0", "serving": {"pods": 1, "gpus": 4}}))
    assert "Cost       1 model server   4 GPUs\n" in shown


def test_what_serving_is_worth_is_said_beside_what_training_cost() -> None:
    finetune = rolling()
    assert "Economics" not in text(finetune)
    said = "serving costs 4,380.00 USD a month, big-api 10,000.00 USD for the same traffic, and 1.00 USD was paid once"
    finetune["status"]["economics"] = {"message": f"pays back in 2.0 months: {said}\x1b[2J"}
    assert (
        "Economics  pays back in 2.0 months: serving costs 4,380.00 USD a month, big-api 10,000.00 USD for the same\n"
        "           traffic, and 1.00 USD was paid once [2J"
    ) in text(finetune)
