"""A connection between rank 0 and each other rank, by whose end the one hears that the other is gone.

The collectives do not always say so. Gloo wakes who waits for a message of which nothing has gone or come; one that is queued to be sent
or gone in part, and one of which a part has come, is waited for until a time-out that is longer than the watchdog's (its
`Pair::signalException` passes over both). A rank that hears of one that is gone ends, and so the others hear of that.
A machine that vanishes without closing its connections is not told from one that is silent: that is the cluster's to say, and the
watchdog's.
A rank whose work is done says so before it closes its end, and is not missed however long another one takes to end: rank 0 may hold
whole weights, whose release takes longer than `patience`.
Invariant: it speaks last. A rank that ends by itself within `patience`, or first finishes what it writes for all, does so.
"""

from __future__ import annotations

import hmac
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from finetune_trainer.exits import Infrastructure
from finetune_trainer.train.distributed import Ranks

PATIENCE_SECONDS = 10.0
CONNECT_SECONDS = 60.0  # all ranks ask at once, the name server too
PAUSE_SECONDS = 1.0
GREETING_SECONDS = 5.0
BEAT_SECONDS = 30.0  # what stands between two pods may close a connection on which nothing moves
BEAT, FAREWELL = b".", b"!"
TOKEN_BYTES = 16
RANK_BYTES = 4
GREETING_BYTES = TOKEN_BYTES + RANK_BYTES
ADVICE = "See the other pods for the cause."
Lines = dict[socket.socket, int]  # by the rank at the other end


@contextmanager
def held(ranks: Ranks, lost: Callable[[Infrastructure], object], patience: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Connect the ranks, which all ask at once. Once another one is gone for `patience` seconds while the block still runs, `lost` is
    called, on a thread of its own. Raises Infrastructure where the ranks do not find each other."""
    if ranks.world_size == 1:
        yield
        return
    lines, over = _connected(ranks), threading.Event()
    watch = threading.Thread(target=_watch, args=(lines, over, ranks.busy, lost, patience), name="lifeline", daemon=True)
    watch.start()
    try:
        yield
        for line in lines:
            with suppress(OSError):
                line.send(FAREWELL, socket.MSG_DONTWAIT)
    finally:
        over.set()
        for line in lines:
            with suppress(OSError):  # the other end is gone already
                line.shutdown(socket.SHUT_RDWR)
        watch.join()
        for line in lines:
            line.close()


def _connected(ranks: Ranks) -> Lines:
    try:
        return _accepted(ranks) if ranks.first else {_greeted(ranks): 0}
    except OSError as error:
        raise Infrastructure("PeerLost", f"another rank went away while the ranks gathered: {error}", ADVICE) from error


def _accepted(ranks: Ranks) -> Lines:
    """One line of each other rank. Who does not know the token, which the ranks were told, is none."""
    token, lines = secrets.token_bytes(TOKEN_BYTES), Lines()
    with _listening(ranks.world_size) as server:
        ranks.tell((server.getsockname()[1], token))
        server.settimeout(CONNECT_SECONDS)
        while len(lines) < ranks.world_size - 1:
            line, _ = server.accept()
            rank = _greeting(line, token)
            if rank is None:
                line.close()
            else:
                lines[line] = rank
    return lines


def _listening(backlog: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=backlog)


def _greeting(line: socket.socket, token: bytes) -> int | None:
    """The rank that a new connection says it is of; None if it does not know the token."""
    said = b""
    line.settimeout(GREETING_SECONDS)
    with suppress(OSError):
        while len(said) < GREETING_BYTES and (part := line.recv(GREETING_BYTES - len(said))):
            said += part
    line.settimeout(None)
    known = len(said) == GREETING_BYTES and hmac.compare_digest(said[:TOKEN_BYTES], token)
    return int.from_bytes(said[TOKEN_BYTES:]) if known else None


def _greeted(ranks: Ranks) -> socket.socket:
    """A line to rank 0."""
    port, token = ranks.tell(None)
    line = _reached((os.environ["MASTER_ADDR"], port))
    line.sendall(token + ranks.rank.to_bytes(RANK_BYTES))
    line.settimeout(None)
    return line


def _reached(address: tuple[str, int]) -> socket.socket:
    """A connection, asked for again while a name server or the network fails. Raises OSError."""
    until = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            return socket.create_connection(address, CONNECT_SECONDS)
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(PAUSE_SECONDS)


def _watch(lines: Lines, over: threading.Event, busy: threading.Lock, lost: Callable[[Infrastructure], object], patience: float) -> None:
    gone = _first_to_end(lines)
    if gone is None or over.wait(patience):
        return
    with busy:
        if not over.is_set():
            lost(Infrastructure("PeerLost", f"another rank went away: rank {gone} closed its connection", ADVICE))


def _first_to_end(lines: Lines) -> int | None:
    """The first rank at the other end of a line that ends without a farewell; None once all have taken leave."""
    with selectors.DefaultSelector() as selector:
        for line in lines:
            selector.register(line, selectors.EVENT_READ, line)
        while there := [key.data for key in selector.get_map().values()]:
            heard: list[socket.socket] = [key.data for key, _ in selector.select(BEAT_SECONDS)]
            for line in heard:
                said = _said(line)
                if said.endswith(FAREWELL):
                    selector.unregister(line)
                elif not said:
                    return lines[line]
            for line in () if heard else there:  # of two ends at least the one that hears nothing says something
                with suppress(OSError):  # the next look at it tells
                    line.send(BEAT, socket.MSG_DONTWAIT)
    return None


def _said(line: socket.socket) -> bytes:
    """What has come; nothing at its end."""
    try:
        return line.recv(4096)
    except OSError:
        return b""
