"""What the users count: failures, arms, and who was taken back."""

from __future__ import annotations

from demo.traffic import Reply, Tally, chosen


def reply(user: str, arm: str, sent: float) -> Reply:
    return Reply(user, arm, ok=True, sent=sent)


def test_a_user_who_gets_the_old_model_after_the_new_one_has_switched_back() -> None:
    tally = Tally(new_arm="new")
    tally.add(reply("a", "old", 1), now=2)
    tally.add(reply("a", "new", 3), now=4)
    tally.add(reply("b", "old", 5), now=6)
    assert tally.switched == set()
    tally.add(reply("a", "old", 7), now=8)
    assert tally.switched == {"a"}
    assert tally.requests == {"old": 3, "new": 1}


def test_an_answer_that_was_under_way_while_the_user_moved_is_no_switch() -> None:
    tally = Tally(new_arm="new")
    tally.add(reply("a", "new", 1), now=4)
    tally.add(reply("a", "old", 3), now=9)
    assert tally.switched == set()


def test_failures_are_counted_and_some_are_kept() -> None:
    tally = Tally()
    for number in range(9):
        tally.add(Reply("a", "", ok=False, sent=0, problem=f"/x answered {500 + number}"), now=1)
    assert tally.failed == 9
    assert tally.failures[0] == "a: /x answered 500"
    assert len(tally.failures) == 5
    assert not tally.requests


def test_both_arms_get_the_same_number_of_requests() -> None:
    split = {"a": "new", **{f"u{n}": "old" for n in range(9)}}
    users = chosen(split, "new", 3)
    assert users == ["a", "u0", "a", "u1", "a", "u2"]
    assert chosen({"a": "new"}, "new", 2) == ["a", "a"]
