"""The router bench's pure parts: who counts as reshuffled, which shares are beyond chance, what comes of the times, and the table."""

from __future__ import annotations

import json
import math

import pytest
from finetune_operator.traffic import Source

from tests.bench.router import __main__ as bench
from tests.bench.router import figures
from tests.bench.router.client import Head, parsed, request_of
from tests.bench.router.figures import Drain, Found, Push, Rollback, Visit, elsewhere, interval, outside, reshuffled
from tests.bench.router.measure import CALLERS

NEVER = Rollback(math.inf, math.inf)


def visit(user: str, arm: str, began: float, ended: float | None = None) -> Visit:
    return Visit(user, arm == "canary", began, began + 0.5 if ended is None else ended)


RESHUFFLED = {
    "nobody leaves the canary": ([visit("ada", "stable", 0), visit("ada", "canary", 1), visit("ada", "canary", 2)], NEVER, set()),
    "who leaves it is found, whoever stays": (
        [visit("ada", "canary", 1), visit("bob", "canary", 1), visit("ada", "stable", 2), visit("bob", "canary", 2)], NEVER, {"ada"},
    ),
    "the order in which answers were noted does not matter": ([visit("ada", "stable", 2), visit("ada", "canary", 1)], NEVER, {"ada"}),
    "an answer that was under way beside the first of the canary is not later": (
        [visit("ada", "canary", 1, 3), visit("ada", "stable", 2, 2.5)], NEVER, set(),
    ),
    "a rollback takes everybody back": ([visit("ada", "canary", 1), visit("ada", "stable", 6)], Rollback(5, 5.5), set()),
    "while it is told either arm is right": (
        [visit("ada", "canary", 1), visit("ada", "stable", 4.8, 5.2), visit("ada", "canary", 5.3)], Rollback(5, 5.5), set(),
    ),
    "after it nobody meets the canary": ([visit("ada", "canary", 5.6)], Rollback(5, 5.5), {"ada"}),
}  # fmt: skip


@pytest.mark.parametrize(("visits", "rollback", "users"), RESHUFFLED.values(), ids=RESHUFFLED)
def test_a_user_is_reshuffled_who_leaves_the_canary_before_a_rollback_or_meets_it_after(
    visits: list[Visit], rollback: Rollback, users: set[str]
) -> None:
    assert reshuffled(visits, rollback) == users


def test_between_two_decisions_every_user_belongs_to_one_arm() -> None:
    visits = [
        visit("ada", "canary", 1, 1.1), visit("bob", "stable", 1, 1.1),  # theirs
        visit("ada", "stable", 0.9, 1.2), visit("bob", "canary", 1.8, 2.1),  # under way while a weight was told
    ]  # fmt: skip
    assert elsewhere(visits, {"ada"}, 1, 2) == set()
    assert elsewhere(visits, {"bob"}, 1, 2) == {"ada", "bob"}


def test_the_interval_leaves_half_a_percent_on_either_side() -> None:
    for n, share in ((200, 0.1), (200, 0.5), (37, 0.9)):
        mass = [math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(n + 1)]
        low, high = interval(n, share)
        assert sum(mass[:low]) <= 0.005 < sum(mass[: low + 1])
        assert sum(mass[high + 1 :]) <= 0.005 < sum(mass[high:])
    assert interval(10_000, 0.5) == (4871, 5129)


def test_at_0_and_100_percent_nothing_is_left_to_chance() -> None:
    assert [outside(1000, weight, count) for weight, count in ((0, 0), (0, 1), (100, 1000), (100, 999))] == [False, True, False, True]
    assert [outside(1000, 10, count) for count in (75, 76, 125, 126)] == [True, False, False, True]


def found(**changes: object) -> Found:
    pushes = [Push(10, (0.002, 0.004)), Push(100, (0.003, 0.003)), Push(0, (0.001, 0.002))]
    pairs = {1: [(0.001, 0.0012), (0.001, 0.0014)], 4: [(0.001, 0.0035)]}
    common = {"pushes": pushes, "structures": [0.1], "pairs": pairs, "router_us": [90.0, 80.0, 110.0]}
    return Found(**{"users": 1000, "requests": 9, "shares": [(10, 100), (10, 300)], **common, **changes})


def test_the_last_line_has_the_worst_of_each_kind() -> None:
    made = figures.figures(found(failed=1, reshuffled=2))
    assert {key: made[key] for key in figures.JSON_KEYS} == {
        "users": 1000, "reshuffled": 2, "failed": 1, "share_outside_interval": 1, "push_p99_s": 0.004, "rollback_p99_s": 0.002,
        "added_p50_ms": 2.5, "added_p95_ms": 2.5,
    }  # fmt: skip
    assert (made["apart_p99_s"], made["added_p50_1_ms"], made["added_p95_1_ms"], made["router_us"]) == (0.002, 0.2, 0.4, 90)


def test_the_table_says_of_every_goal_whether_it_is_met() -> None:
    lines = figures.table(figures.figures(found()), (1, 4)).splitlines()
    verdict = {line[:40].strip(): line.split()[-1] for line in lines if "<=" in line}
    assert verdict == {
        "users reshuffled": "met", "requests failed": "met", "- outside the binomial 99 % interval": "MISSED",
        "decision to the last router: p99 (s)": "met", "rollback to the last router: p99 (s)": "met",
        "added, 1 at once: p95 (ms)": "met", "added, 4 at once: p95 (ms)": "MISSED",
    }  # fmt: skip


def test_a_drain_is_shown_where_there_was_one() -> None:
    assert "a router that goes" not in figures.table(figures.figures(found()), (1, 4))
    made = figures.figures(found(drain=Drain(100, 1, 9, 0, 45.0, 45.5, killed=False)))
    verdict = {line[:36].strip(): line.split()[-1] for line in figures.table(made, (1, 4)).splitlines()[-7:] if "<=" in line}
    assert verdict == {"- cut": "MISSED", "- failed": "met", "- killed when the grace was over": "met"}
    assert (made["drain_streams"], made["drain_ended"]) == (100, 45.5)
    assert "drain_cut" in figures.missed(made, (1, 4))


@pytest.mark.parametrize(("flags", "failed", "status"), [(["--strict"], 1, 1), (["--strict"], 0, 0), ([], 1, 0)])
def test_a_goal_that_is_missed_ends_a_strict_run_with_1(
    flags: list[str], failed: int, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    async def seen(*_: object) -> Found:
        return found(shares=[(10, 100)], pairs={callers: [(0.001, 0.0012)] for callers in CALLERS}, failed=failed)

    monkeypatch.setattr(bench, "run", seen)
    monkeypatch.setattr("sys.argv", ["bench", *flags])
    assert bench.main() == status


def test_the_shares_are_told_by_weight() -> None:
    of = found(shares=[(0, 0), (10, 100), (0, 0), (10, 97)])
    assert figures.shares(of) == "on the canary at 0 %: 0, 0 of 1000\non the canary at 10 %: 100, 97 of 1000"


def test_an_answer_is_read_once_it_is_complete() -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-finetune-arm: aaa\r\nx-pod: 127.0.1.1\r\n\r\nok"
    assert [parsed(answer[:end]) for end in (0, 20, len(answer) - 1)] == [None, None, None]
    assert parsed(answer) == Head(200, "aaa", "127.0.1.1", goes_on=True)
    last = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    assert parsed(last) == Head(503, "", "", goes_on=False)


def test_a_request_names_its_user_where_the_router_looks() -> None:
    by_header, by_body = request_of("ada", Source(header="x-user-id")), request_of("ada", Source(body_field="user"))
    assert b"\r\nx-user-id: ada\r\n" in by_header
    head, _, body = by_body.partition(b"\r\n\r\n")
    assert (b"x-user-id" in head, json.loads(body)["user"]) == (False, "ada")
    assert f"content-length: {len(body)}".encode() in head
