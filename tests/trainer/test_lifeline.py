"""A rank hears that another one is gone although no collective tells it, and takes nobody for lost who has ended in an orderly way."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finetune_trainer.train import distributed, lifeline
from finetune_trainer.train.distributed import Ranks

from tests.trainer.support import on_ranks


@pytest.mark.parametrize("dying", [1, 2])
def test_all_others_hear_of_a_rank_that_is_gone(dying: int) -> None:
    found = on_ranks(3, hears, dying, dies=dying)
    other = 3 - dying
    assert found[0] == ("infrastructure", "PeerLost", f"another rank went away: rank {dying} closed its connection")
    assert found[other] == ("infrastructure", "PeerLost", "another rank went away: rank 0 closed its connection")


def test_all_others_hear_that_rank_0_is_gone() -> None:
    for found in on_ranks(3, hears, 0, dies=0)[1:]:
        assert found[2] == "another rank went away: rank 0 closed its connection"


def hears(dying: int) -> tuple[str, str, str]:
    """What this rank is told of the one that dies, while it stands in no collective. Who is told so ends for it, without a farewell."""
    ranks = Ranks.join(60, gpus=False)
    heard: queue.Queue[Any] = queue.Queue()
    try:
        with lifeline.held(ranks, heard.put, patience=0.1):
            ranks.sum(torch.ones(1))
            if ranks.rank == dying:
                os.kill(os.getpid(), signal.SIGKILL)
            raise heard.get(timeout=30)
    except lifeline.Infrastructure as error:
        return error.failure_class, error.reason, error.message


@pytest.mark.parametrize("sender", [0, 1])
def test_a_rank_is_missed_that_dies_while_a_message_is_on_its_way(sender: int) -> None:
    """Gloo's `Pair::signalException` wakes neither who has sent a part of one, nor who has got a part of it: both wait for the time-out."""
    assert on_ranks(2, waits_in_vain, sender, dies=1)[0] == "PeerLost"


def waits_in_vain(sender: int) -> str:
    """What tells rank 0 that the other one died in the midst of a message of the sender: its lifeline, or the broadcast."""
    ranks = Ranks.join(20, gpus=False)
    told: queue.Queue[str] = queue.Queue()

    def cast() -> None:
        try:
            torch.distributed.broadcast(torch.ones(16_000_000), src=sender)  # more than the connection holds
        except RuntimeError as error:
            told.put(f"the broadcast: {error}")

    with lifeline.held(ranks, lambda error: told.put(error.reason), patience=0.5):
        first, second = (int(pid) for pid in ranks.sum(torch.eye(2, dtype=torch.int64)[ranks.rank] * os.getpid()))
        if not ranks.first:
            receiver = (second, first)[sender]
            subprocess.Popen(["sh", "-c", f"sleep 1; kill -STOP {receiver}; sleep 1; kill -KILL {second}; kill -CONT {first}"])
        time.sleep(1.5 if ranks.rank == sender else 0)  # the receiver waits by then, and reads nothing any more
        threading.Thread(target=cast, daemon=True).start()
        return told.get(timeout=60)


def test_a_rank_that_ends_a_moment_before_the_others_is_not_missed() -> None:
    assert on_ranks(2, ends_apart) == [[], []]


def ends_apart() -> list[Any]:
    """What each rank is told, of which the second ends first."""
    ranks = Ranks.join(60, gpus=False)
    heard: list[Any] = []
    with lifeline.held(ranks, heard.append, patience=30):
        ranks.sum(torch.ones(1))
        time.sleep(0.3 if ranks.first else 0)
    return heard


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_a_rank_that_takes_long_to_end_misses_nobody_whose_work_is_done(slow: int) -> None:
    assert on_ranks(3, ends_long_after, slow) == [[], [], []]


def ends_long_after(slow: int) -> list[Any]:
    """What each rank is told, of which one is still busy with itself when the patience for the others has run out."""
    ranks = Ranks.join(60, gpus=False)
    heard: list[Any] = []
    with lifeline.held(ranks, lambda error: heard.append(error.message), patience=0.1):
        ranks.sum(torch.ones(1))
        time.sleep(1 if ranks.rank == slow else 0)
    return heard


def test_a_name_server_that_fails_once_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    known, asked = socket.getaddrinfo, list[str]()

    def resolve(host: str, *rest: Any, **more: Any) -> Any:
        asked.append(host)
        if len(asked) == 1:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return known(host, *rest, **more)

    monkeypatch.setattr(lifeline, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with socket.create_server(("127.0.0.1", 0)) as server:
        lifeline._reached(("127.0.0.1", server.getsockname()[1])).close()
    assert asked == ["127.0.0.1"] * 2


def test_what_rank_0_writes_for_all_is_finished_first() -> None:
    assert on_ranks(2, loses_one_while_it_writes, dies=1)[0][:1] == ["written"]


def loses_one_while_it_writes() -> list[str]:
    """What rank 0 does and hears while the other one dies in its save."""
    ranks = Ranks.join(60, gpus=False)
    found: list[str] = []

    def write() -> None:
        time.sleep(2)
        found.append("written")

    if not ranks.first:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGKILL)).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "TICK_SECONDS", 0.1)
        with lifeline.held(ranks, lambda error: found.append(error.reason), patience=0.1), pytest.raises(RuntimeError):
            ranks.first_does(write, lambda: None, 1)
    return found


def test_who_does_not_know_the_token_is_no_rank() -> None:
    told: queue.Queue[tuple[int, bytes]] = queue.Queue()
    found: list[Any] = []

    def come() -> None:
        port, token = told.get(timeout=10)
        for greeting in (bytes(lifeline.GREETING_BYTES), token[:4], b""):
            with socket.create_connection(("127.0.0.1", port), 10) as stranger:
                stranger.sendall(greeting)
                stranger.shutdown(socket.SHUT_WR)
                found.append(stranger.recv(1))
        with socket.create_connection(("127.0.0.1", port), 10) as rank:
            rank.sendall(token + (1).to_bytes(lifeline.RANK_BYTES))
            found.append(rank.recv(1))

    coming = threading.Thread(target=come)
    coming.start()
    lines = lifeline._accepted(SimpleNamespace(world_size=2, tell=told.put))  # type: ignore[arg-type]
    [line] = lines
    line.sendall(b".")
    coming.join(10)
    line.close()
    assert list(lines.values()) == [1]
    assert found == [b"", b"", b"", b"."]


def test_ranks_that_do_not_come_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifeline, "CONNECT_SECONDS", 0.1)
    alone: Any = SimpleNamespace(world_size=2, first=True, tell=lambda value: value)
    with pytest.raises(lifeline.Infrastructure, match="went away while the ranks gathered") as failure:
        lifeline._connected(alone)
    assert failure.value.reason == "PeerLost"


def test_a_line_on_which_nothing_moves_is_kept_in_use_and_only_its_end_is_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifeline, "BEAT_SECONDS", 0.05)
    here, there = socket.socketpair()
    ended: queue.Queue[int] = queue.Queue()
    threading.Thread(target=lambda: ended.put(lifeline._first_to_end({here: 7})), daemon=True).start()
    there.settimeout(10)
    assert there.recv(1) == b"."
    there.sendall(b"....")
    assert there.recv(1) == b"."
    assert ended.empty()
    there.close()
    assert ended.get(timeout=10) == 7
    here.close()
