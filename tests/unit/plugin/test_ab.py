"""`ab`: logs that are read, outcomes that are joined, what is told of it, and what is said of everything that is wrong."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from kubectl_finetune import __main__ as command
from kubectl_finetune.ab import command as ab
from kubectl_finetune.ab import compare, exposures, outcomes, statistics, view, words
from kubectl_finetune.ab.exposures import Asked, Quantiles, Seen, Tally
from kubectl_finetune.kubectl import Kubectl, PluginError

from tests.unit.plugin.cluster import FakeKubectl, cluster, rolling
from tests.unit.plugin.experiments import BEGAN, CANARY, KEY, ROLLOUT, STABLE, arm_of, line, log, solved

EVERYTHING = Asked()


def read(lines: Iterable[str], asked: Asked = EVERYTHING) -> Seen:
    return exposures.read(lines, "ab.log", asked)


def pair(**changes: Any) -> list[str]:
    """A user on each arm; what differs is of the canary's line."""
    return [line("ada"), line("bob", CANARY, **changes)]


# ---- the log


def test_a_users_requests_are_summed_and_failures_are_not_timed() -> None:
    lines = [
        line("ada", duration_ms=100, first_ms=10, completion_tokens=5),
        line("ada", duration_ms=300, first_ms=30, completion_tokens=None),
        line("ada", duration_ms=9000, status=503, first_ms=None, completion_tokens=None),
        line("ada", duration_ms=9000, flags="UPE", completion_tokens=None),
        line("ada", duration_ms=50, status=0, flags="DC", first_ms=None, completion_tokens=None),
        line("bob", CANARY),
    ]
    seen = read(lines)
    assert seen.arms[STABLE].users == {
        compare.hashed(KEY, "ada"): Tally(
            requests=5, errors=2, duration=400.0, answered=2, first=40.0, firsts=2, tokens=5.0, counted=1
        )
    }  # fmt: skip
    assert (seen.arms[STABLE].abandoned, seen.stable, seen.canary, seen.split) == (1, STABLE, CANARY, 50)


# how a line may come
FORMS = {
    "alone": lambda text: text,
    "behind the pod's name": lambda text: f"[pod/bot-router-0/envoy] {text}",
    "as a container runtime keeps it": lambda text: f"2026-11-01T12:00:00.000000000Z stdout F {text}",
    "in another's JSON": lambda text: json.dumps({"log": text, "stream": "stdout"}) + "\n",
    "in a collector's message": lambda text: json.dumps({"message": text, "pod": "bot-router-0"}),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_line_is_known_in_whatever_it_comes(form: str) -> None:
    assert sorted(read(map(FORMS[form], pair())).arms) == [STABLE, CANARY]


def test_what_else_a_router_says_is_passed_over() -> None:
    assert len(read(["[warning] a cluster is gone\n", '{"level": "info"}\n', "\n", *pair()]).arms) == 2


def test_other_rollouts_and_other_times_do_not_count() -> None:
    late = (BEGAN + timedelta(hours=1)).isoformat()
    lines = [*pair(), line("eve", rollout="another"), line("joe", time=late)]
    seen = read(lines, Asked(ROLLOUT, BEGAN, BEGAN))
    assert (seen.skipped, seen.began, seen.ended) == (2, BEGAN, BEGAN)
    assert {len(arm.users) for arm in seen.arms.values()} == {1}


# lines → words of the error
WRONG: dict[str, tuple[list[str], str]] = {
    "nothing": ([], "ab.log has no exposure of it. The routers log them while a rollout runs with spec.rollout.experiment.log"),
    "nothing of it": (["[info] ready\n"], "ab.log has no exposure of it"),
    "one arm": ([line("ada")], f"ab.log has users of one arm alone, {STABLE} (the present one)"),
    "the new arm alone": ([line("ada", CANARY)], f"ab.log has users of one arm alone, {CANARY} (the new one)"),
    "no new arm": ([line("ada"), line("bob", "ccc33333")], f"ab.log: no line is of the new arm, {CANARY}"),
    "three arms": ([*pair(), line("eve", "ccc33333")], "ab.log, line 3: ccc33333 is a third arm"),
    "two rollouts": (pair(rollout="later"), "ab.log, line 2: the rollout is later, and it was a1b2c3d4 before; choose one by --rollout"),
    "two splits": (pair(split=30), "ab.log, line 2: the split is 30.0, and it was 50.0 before; it was changed: choose the time"),
    "two keys": (pair(key="0badc0de"), "ab.log, line 2: the key is 0badc0de"),
    "cut off": (["ready\n", line("ada")[:-20]], "ab.log, line 2: it is no JSON"),
    "no object": (['["finetune.exposure/1"]\n'], "ab.log, line 1: it is no JSON"),
    "something that tells of it": (
        ['{"note": "finetune.exposure/1"}\n'],
        "ab.log, line 1: it has finetune.exposure/1 in it, and is no line of",
    ),
    "no user": (pair(user=None), "ab.log, line 2: user is None, and is to be a text"),
    "no split": (pair(split=None), "ab.log, line 2: there is no split"),
    "a time that is none": (pair(time="yesterday"), "ab.log, line 2: time is 'yesterday', and no time"),
    "a time without a zone": (pair(time="2026-11-01T12:00:00"), "ab.log, line 2: time is '2026-11-01T12:00:00', without a zone"),
    "a duration that is none": (pair(duration_ms="fast"), "ab.log, line 2: duration_ms is 'fast', and is to be a number"),
    "a duration of many digits": (pair(duration_ms=10**400), "ab.log, line 2: duration_ms is 1000"),
    "a status that is true": (pair(status=True), "ab.log, line 2: status is True, and is to be a number"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_log(case: str) -> None:
    lines, words = WRONG[case]
    with pytest.raises(PluginError) as error:
        read(lines)
    assert str(error.value).startswith(words)


def test_quantiles_are_within_two_per_cent() -> None:
    times = Quantiles()
    assert times.at(0.5) is None
    for ms in range(1, 100_001):
        times.add(ms)
    assert times.at(0.5) == pytest.approx(50_000, rel=0.02)
    assert times.at(0.95) == pytest.approx(95_000, rel=0.02)
    times.add(0)
    assert times.at(0) == pytest.approx(0.5, rel=0.02)


# ---- outcomes


def test_csv_and_json_lines_are_one(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('﻿user,solved\n"ada, the first",1\nbob,0\n', encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"user": "ada, the first", "solved": true}\n\n{"user": "bob", "solved": 0}\n')
    first, second = (outcomes.load(tmp_path / name, "user", None) for name in ("a.csv", "a.jsonl"))
    assert [(o.id, o.value) for o in first.rows] == [(o.id, o.value) for o in second.rows] == [("ada, the first", 1.0), ("bob", 0.0)]
    assert first.share
    assert [o.row for o in first.rows] == [2, 3]


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("-2.5e3", -2500), ("true", 1), ("No", 0), (" yes ", 1)])
def test_values(tmp_path: Path, text: str, value: float) -> None:
    (tmp_path / "a.csv").write_text(f"user,x\nada,{text}\n")
    assert outcomes.load(tmp_path / "a.csv", "user", "x").rows[0].value == value


# file name, its text, the metric that is asked for → words of the error
BAD_FILES: dict[str, tuple[str, str, str | None, str]] = {
    "nothing": ("a.csv", "", None, "it has no rows"),
    "a head alone": ("a.csv", "user,x\n", None, "it has no rows"),
    "no ids": ("a.csv", "id,x\nada,1\n", None, "there is no column user (TMP/a.csv has: id, x); --id names the one with the ids"),
    "no such metric": ("a.csv", "user,x\nada,1\n", "y", "there is no column y (TMP/a.csv has: user, x)"),
    "two metrics": ("a.csv", "user,x,y\nada,1,2\n", None, "which column is the metric? --metric names it"),
    "the ids as the metric": ("a.csv", "user,x\nada,1\n", "user", "there is no column user"),
    "a short row": ("a.csv", "user,x\nada,1\nbob\n", None, "TMP/a.csv, row 3: it has not as many values as"),
    "a long row": ("a.csv", "user,x\nada,1,2\n", None, "TMP/a.csv, row 2: it has not as many values as"),
    "an open quote": ("a.csv", 'user,x\n"ada,1\n', None, "TMP/a.csv, after row 1: unexpected end of data"),
    "no value": ("a.csv", "user,x\nada,\n", None, "TMP/a.csv, row 2: x is empty"),
    "no id": ("a.csv", "user,x\n,1\n", None, "TMP/a.csv, row 2: user is empty"),
    "a number beyond all sums": (
        "a.csv",
        "user,x\nada,1e300\n",
        None,
        "TMP/a.csv, row 2: x is '1e300', and is to be a number of 1e+100 at most",
    ),
    "a number of many digits": ("a.jsonl", f'{{"user":"ada","x":1{"0" * 400}}}\n', None, "TMP/a.jsonl, row 1: x is 1000"),
    "no number": ("a.csv", "user,x\nada,1\nbob,good\n", None, "TMP/a.csv, row 3: x is 'good', and is to be a number, true or false"),
    "not finite": ("a.csv", "user,x\nada,inf\n", None, "TMP/a.csv, row 2: x is 'inf'"),
    "no JSON": ("a.jsonl", '{"user": "ada", "x": 1}\n{"user"\n', None, "TMP/a.jsonl, row 2: it is no JSON"),
    "no object": ("a.jsonl", "[1]\n", None, "TMP/a.jsonl, row 1: it is to be a JSON object"),
    "a list": ("a.jsonl", '{"user": "ada", "x": [1]}\n', None, "TMP/a.jsonl, row 1: x is [1]"),
    "a row without it": ("a.jsonl", '{"user": "ada", "x": 1}\n{"user": "bob"}\n', None, "TMP/a.jsonl, row 2: x is empty"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_what_is_wrong_with_outcomes(case: str, tmp_path: Path) -> None:
    name, text, metric, words = BAD_FILES[case]
    (tmp_path / name).write_text(text)
    with pytest.raises(PluginError) as error:
        outcomes.load(tmp_path / name, "user", metric)
    assert words.replace("TMP", str(tmp_path)) in str(error.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="No such file"):
        outcomes.load(tmp_path / "a.csv", "user", None)
    (tmp_path / "a.csv").write_bytes(b"user,x\nad\xe4,1\n")
    with pytest.raises(PluginError, match="not in UTF-8"):
        outcomes.load(tmp_path / "a.csv", "user", None)


def rows(*pairs: tuple[str, float]) -> outcomes.Outcomes:
    return outcomes.Outcomes("solved", tuple(outcomes.Outcome(n, who, value) for n, (who, value) in enumerate(pairs, 2)))


def outcome_of(seen: Seen, user: str) -> tuple[float, int]:
    tally = next(arm.users[compare.hashed(KEY, user)] for arm in seen.arms.values() if compare.hashed(KEY, user) in arm.users)
    return tally.outcome, tally.outcomes


def test_outcomes_find_their_users_by_name() -> None:
    seen = read([*pair(), line("joe"), line("zoe", CANARY)])
    joined = compare.by_user(seen, rows(("ada", 1), (" ada ", 0), ("bob", 1), ("eve", 1)), KEY, zero=False)
    assert (joined.rows, joined.unknown, joined.first_unknown, joined.with_outcome) == (3, 1, (5,), (1, 1))
    assert [outcome_of(seen, user) for user in ("ada", "bob", "joe")] == [(1, 2), (1, 1), (0, 0)]


def test_who_has_no_outcome_may_count_as_none() -> None:
    seen = read([*pair(), line("joe")])
    joined = compare.by_user(seen, rows(("ada", 1)), KEY, zero=True)
    assert joined.with_outcome == (1, 0), "of the file"
    assert [outcome_of(seen, user) for user in ("ada", "bob", "joe")] == [(1, 1), (0, 1), (0, 1)]


def test_another_key_finds_nobody_and_says_so() -> None:
    with pytest.raises(PluginError, match=r"written with another key \([0-9a-f]{8}\) than the one given"):
        compare.by_user(read(pair()), rows(("ada", 1)), b"another key of some length", zero=False)


def test_outcomes_of_answers_are_of_the_users_who_got_them() -> None:
    wanted = Asked(responses=frozenset({"c-1", "c-2", "c-3", "c-9"}))
    lines = [line("ada", response="c-1"), line("ada", response="c-2"), line("bob", CANARY, response="c-3"), line("bob", CANARY)]
    seen = read(lines, wanted)
    joined = compare.by_response(seen, rows(("c-1", 1), ("c-2", 0), ("c-3", 1), ("c-9", 1)))
    assert (joined.rows, joined.unknown, joined.with_outcome) == (3, 1, (1, 1))
    assert [outcome_of(seen, user) for user in ("ada", "bob")] == [(1, 2), (1, 1)]
    with pytest.raises(PluginError, match="row 3: the answer c-1 has an outcome already, of row 2"):
        compare.by_response(seen, rows(("c-1", 1), ("c-1", 1)))


# ---- the comparison


def test_users_on_both_arms_are_of_neither() -> None:
    lines = [*log(400), line("user-1", STABLE), line("user-1", CANARY)]
    seen = read(lines)
    found = compare.compare(seen)
    assert found.both == (compare.hashed(KEY, "user-1"),)
    without = compare.compare(read(text for text in lines if compare.hashed(KEY, "user-1") not in text))
    assert found.metrics == without.metrics
    assert found.mismatch == without.mismatch


def test_the_outcome_comes_first_and_its_effect_is_what_was_made() -> None:
    seen, made = read(log(4000)), rows(*solved(4000, better=0.1))
    found = compare.compare(seen, made, compare.by_user(seen, made, KEY, zero=False))
    metric = found.metrics[0]
    assert (metric.name, metric.unit) == ("solved", "share")
    assert metric.effect is not None
    assert metric.effect.low < 0.1 < metric.effect.high
    assert metric.effect.p < 1e-6
    assert [m.name for m in found.metrics[1:]] == ["errors", "time to the end", "time to first byte", "tokens an answer"]
    assert found.split_is_met


def test_a_faster_canary_is_seen_in_the_log_alone() -> None:
    found = compare.compare(read(log(2000, faster=0.2)))
    times = {m.name: m.effect for m in found.metrics}
    assert times["time to the end"] is not None
    assert times["time to the end"].lift == pytest.approx(-0.2, abs=0.05)
    assert times["time to the end"].p < 1e-6
    assert times["tokens an answer"] is not None
    assert times["tokens an answer"].p > 0.01


def test_a_tenth_is_a_split_too() -> None:
    found = compare.compare(read(log(4000, split=10)))
    assert found.split == 10
    assert found.canary.users < 500
    assert found.split_is_met


def test_a_part_of_the_canarys_users_that_is_lost_is_found() -> None:
    lost = [text for text in log(4000) if f'"arm": "{CANARY}"' not in text or '"0' in text[text.index('"user"') :][:12] or hash_even(text)]
    assert not compare.compare(read(lost)).split_is_met


def hash_even(text: str) -> bool:
    return int(json.loads(text)["user"], 16) % 4 != 0


# ---- what is told


def told(*words: str, kubectl: Kubectl | None = None) -> tuple[int, str]:
    out = io.StringIO()
    options = command.parser().parse_args(["ab", "bot", *words])
    return ab.run(kubectl or running(), "bot", options, out), out.getvalue()


def running(experiment: dict[str, Any] | None = None, **changes: Any) -> FakeKubectl:
    finetune = rolling(experiment=experiment or {"weight": 50, "since": "2026-11-01T12:00:00Z"})
    finetune["spec"]["rollout"] = {"experiment": {"weight": 50, "log": {"secretName": "bot-ab"}}}
    return cluster(finetune, **{"secrets": {"bot-ab": {"key": KEY + b"\n"}}, "logged": [*log(400)], **changes})


def written(folder: Path, name: str, lines: Iterable[str]) -> str:
    (folder / name).write_text("".join(lines))
    return str(folder / name)


def outcome_file(folder: Path, users: int = 400, better: float = 0.0) -> str:
    return written(folder, "solved.csv", ["user,solved\n", *(f"{u},{v}\n" for u, v in solved(users, better=better))])


def test_the_page(tmp_path: Path) -> None:
    kubectl = running(logged=[*log(3000, faster=0.05)])
    status, page = told("--outcomes", outcome_file(tmp_path, 3000, 0.1), kubectl=kubectl)
    assert status == 0
    lines = page.splitlines()
    assert lines[0] == "bot  A/B test, rollout a1b2c3d4: 50 % of the users on revision 1f2e3d4c, the others on 0a0b0c0d"
    assert "3,000 users" in lines[1]
    assert any(text.startswith("Split     ") and "50 % should be" in text for text in lines)
    assert any(text.startswith("Outcomes  3,000 rows met the log; users with one: stable 100.00 %, canary 100.00 %") for text in lines)
    row = next(text for text in lines if text.startswith("solved "))
    assert " points " in row
    assert "●" in row
    assert lines[-1].startswith("So many users") or lines[-2].startswith("solved: higher on the canary by ")
    assert "The test is still running" in page
    assert max(map(len, lines)) <= 130
    assert not any(text.endswith(" ") for text in lines)


def test_the_log_and_the_key_come_through_kubectl(tmp_path: Path) -> None:
    kubectl = running()
    told("--outcomes", outcome_file(tmp_path), kubectl=kubectl)
    assert kubectl.calls[1:] == [
        (
            "logs", "--selector=finetune.dev/name=bot,finetune.dev/component=router", "--container=envoy", "--tail=-1",
            "--since-time=2026-11-01T12:00:00Z",
        ),
        ("get", "secret", "bot-ab", "--output=json"),
    ]  # fmt: skip


def test_without_outcomes_the_key_is_not_asked_for() -> None:
    kubectl = running(secrets={})
    assert told(kubectl=kubectl)[0] == 0
    assert not any("secret" in call for call in kubectl.calls)


def test_a_log_of_ones_own_needs_no_cluster(tmp_path: Path) -> None:
    key = written(tmp_path, "key", [KEY.decode() + "\n"])
    words = ("--log", written(tmp_path, "ab.log", log(400)), "--outcomes", outcome_file(tmp_path), "--key-file", key)
    status, page = told(*words, kubectl=cluster())
    assert status == 0
    assert "400 rows met the log" in page
    assert "(it is gone)" in page


def test_the_log_may_come_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(log(400))))
    assert told("--log", "-")[0] == 0


def test_the_tests_own_time_counts_unless_another_is_asked_for() -> None:
    day = {"weight": 50, "since": "2026-11-02T12:00:00Z", "until": "2026-11-03T12:00:00Z"}
    page = told("--json", kubectl=running(day))[1]
    found = json.loads(page)
    assert "2026-11-02T12:" < found["began"] < found["ended"] < "2026-11-03T12:00:01"
    assert found["notes"] == []
    evening = json.loads(told("--json", "--since", "2026-11-02T18:00:00Z", kubectl=running(day))[1])
    assert "2026-11-02T18:" <= evening["began"] < evening["ended"] == found["ended"]


def test_json_has_everything(tmp_path: Path) -> None:
    status, text = told("--json", "--outcomes", outcome_file(tmp_path))
    found = json.loads(text)
    assert status == 0
    assert (found["name"], found["rollout"], found["split"], found["split_is_met"]) == ("bot", "a1b2c3d4", 50.0, True)
    assert found["metrics"][0]["effect"].keys() == {"difference", "low", "high", "p", "detectable", "lift", "lift_low", "lift_high"}
    assert found["joined"]["rows"] == 400


def test_a_split_that_is_not_met_is_loud_and_tells_no_effects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lost = [text for text in log(4000) if f'"arm": "{CANARY}"' not in text or hash_even(text)]
    kubectl = running(logged=lost)
    status, page = told(kubectl=kubectl)
    assert status == 3
    assert "SAMPLE RATIO MISMATCH" in page
    assert "difference, 95 % interval" not in page
    assert "--force tells them" in capsys.readouterr().err
    path = tmp_path / "ab.html"
    told("--html", str(path), kubectl=running(logged=lost))
    assert path.read_text().index("Sample ratio mismatch") < path.read_text().index("<h2>Arms")
    assert "<svg" not in path.read_text()
    status, page = told("--force", kubectl=running(logged=lost))
    assert status == 0
    assert "SAMPLE RATIO MISMATCH" in page
    assert "difference, 95 % interval" in page


def test_a_log_that_has_lost_its_beginning_says_so() -> None:
    late = {"weight": 50, "since": (BEGAN - timedelta(days=3)).strftime("%Y-%m-%dT%H:%M:%SZ")}
    assert "what was logged is gone" in told(kubectl=running(late))[1].replace("\n          ", " ")
    assert "is gone" not in told()[1]


def test_arms_that_differ_in_who_has_an_outcome_are_told(tmp_path: Path) -> None:
    kept = [f"{u},{v}\n" for u, v in solved(400) if arm_of(u) == STABLE or int(u[5:]) % 3]
    page = told("--outcomes", written(tmp_path, "a.csv", ["user,solved\n", *kept]))[1]
    assert "The arms differ in how many users have an outcome at all" in page


def test_few_users_are_told_and_nothing_is_said_of_them() -> None:
    page = told(kubectl=running(logged=[*log(40)]))[1]
    assert "30 of each are compared" in page
    assert "errors: nothing is said of it" in page


# what the cluster, or the command line, is → words of the error
REFUSED: dict[str, tuple[list[str], Any, str]] = {
    "no rollout yet": ([], lambda: cluster(rolling(name=None)), "it has had no rollout"),
    "the split is not fixed yet": (
        [],
        lambda: cluster(rolling()),
        "the split of rollout a1b2c3d4 is not fixed (Holding, 10 % of the users)",
    ),
    "nothing in the log": ([], lambda: running(logged=[]), "the routers' log has no exposure of it"),
    "another rollout": (["--rollout", "older"], running, "the routers' log has no exposure of it ("),
    "no such file": (["--log", "/nonexistent/ab.log"], running, "/nonexistent/ab.log: No such file"),
    "no key": (
        ["--outcomes", "FILE"],
        lambda: running(secrets={"bot-ab": {"other": b"x"}}),
        "Secret bot-ab has no entry `key` of at least 16",
    ),
    "a short key": (["--outcomes", "FILE"], lambda: running(secrets={"bot-ab": {"key": b"short"}}), "Secret bot-ab has no entry `key`"),
    "no key file": (["--outcomes", "FILE", "--key-file", "/nonexistent/key"], running, "/nonexistent/key: No such file"),
    "no Secret in the spec": (
        ["--outcomes", "FILE"],
        lambda: logless(),
        "its spec has no rollout.experiment.log, whose Secret has the key",
    ),
    "outcomes of nobody": (["--outcomes", "NOBODY"], running, "none of the 2 rows of NOBODY is of anybody in the log. Are they users"),
    "answers of nobody": (
        ["--outcomes", "NOBODY", "--join", "response", "--id", "user"],
        running,
        "none of the 2 rows of NOBODY is of anybody",
    ),
}


def logless() -> FakeKubectl:
    kubectl = running()
    kubectl.finetunes["bot"]["spec"]["rollout"] = {}
    return kubectl


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_compared(case: str, tmp_path: Path) -> None:
    words, kubectl, said = REFUSED[case]
    files = {"FILE": outcome_file(tmp_path), "NOBODY": written(tmp_path, "nobody.csv", ["user,solved\n", "x,1\n", "y,0\n"])}
    with pytest.raises(PluginError) as error:
        told(*(files.get(word, word) for word in words), kubectl=kubectl())
    assert str(error.value).startswith(said.replace("NOBODY", files["NOBODY"]))


def test_a_time_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.parser().parse_args(["ab", "bot", "--since", "yesterday"])
    assert "'yesterday' is no time such as" in capsys.readouterr().err
    assert command.parser().parse_args(["ab", "bot", "--since", "2026-11-01"]).since == datetime(2026, 11, 1, tzinfo=UTC)


def test_a_page_to_hand_on_stands_alone_and_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "ab.html"
    made = outcomes.Outcomes("<solved>", rows(*solved(3000, better=0.1)).rows)
    (tmp_path / "a.csv").write_text("user,<solved>\n" + "".join(f"{o.id},{o.value}\n" for o in made.rows))
    _, text = told("--outcomes", str(tmp_path / "a.csv"), "--html", str(path), kubectl=running(logged=[*log(3000)]))
    page = path.read_text()
    said = [told_ for told_ in text.splitlines() if told_.startswith(("Split", "Outcomes"))]
    assert all(told_[view.MARGIN :] in page for told_ in said)
    assert len(said) == 2
    assert "&lt;solved&gt;: higher on the canary by" in page
    assert not re.search(r"<solved|<script|https?://|src=|href=", page)
    assert page.count("<svg") == 6
    assert not re.search(r"svg{[^}]*[{;]width:\d+rem", page), "a narrow window shrinks the drawing, and hides no end of it"
    ElementTree.fromstring(page.removeprefix("<!doctype html>").replace('<meta charset="utf-8">', "").replace(META, ""))
    with pytest.raises(PluginError, match="No such file"):
        told("--html", "/nonexistent/ab.html")


META = '<meta name="viewport" content="width=device-width,initial-scale=1">'


def effect(*values: float | None) -> statistics.Effect:
    return statistics.Effect(0.1, 0.0, 0.2, 0.01, 0.1, *values)


# relative effect with its ends, half the axis → what is drawn
DRAWN: dict[str, tuple[statistics.Effect, float, str]] = {
    "zero in it": (effect(0.0, -0.5, 0.5), 1.0, "        ├───────●───────┤        "),
    "above": (effect(0.5, 0.25, 0.75), 1.0, "                │   ├───●───┤    "),
    "beyond": (effect(0.5, -3.0, 4.0), 1.0, "◂───────────────┼───────●───────▸"),
    "far beyond": (effect(3.0, 2.0, 4.0), 1.0, "                │               ▸"),
    "no share": (effect(), 1.0, ""),
}


@pytest.mark.parametrize("case", DRAWN)
def test_intervals_are_drawn_on_one_scale(case: str) -> None:
    found, scale, drawing = DRAWN[case]
    assert view._drawn(found, scale) == drawing


@pytest.mark.parametrize(
    ("x", "unit", "width", "text"),
    [
        (0.0245, "share", 0.0245, "+2.45"),
        (-64.2, "milliseconds", 30.5, "−64.2"),
        (0.00001, "share", None, "+0.00100"),
        (0.0, "number", None, "+0"),
    ],
)
def test_differences_have_their_sign(x: float, unit: compare.Unit, width: float | None, text: str) -> None:
    assert words.difference(x, unit, width) == text


def test_lines_are_streamed_and_what_kubectl_says_is_an_error() -> None:
    def kubectl(text: str) -> Kubectl:
        return Kubectl((), ("python3", "-c", text))

    assert list(kubectl("print('a'); print('b')").lines("logs", most=100)) == ["a\n", "b\n"]
    endless = kubectl("while True: print('a' * 60)").lines("logs", most=1000)
    with pytest.raises(PluginError, match="more to say than is read at once"):
        list(endless)
    left = kubectl("while True: print('a' * 60)").lines("logs", most=10**9)
    assert next(left) == "a" * 60 + "\n"
    left.close()  # type: ignore[attr-defined]
    with pytest.raises(PluginError, match="it broke"):
        list(kubectl("import sys; print('a'); sys.exit('it broke')").lines("logs", most=100))
    with pytest.raises(PluginError, match="kubectl is not on PATH"):
        list(Kubectl((), ("/nonexistent/kubectl",)).lines("logs", most=100))
