"""Ports and addresses on loopback that are this process's alone, so that tests can run side by side.

A process that asks has one of a few lots for as long as it lives: ports below those from which the kernel takes a connection's
own, and a network of addresses. Whoever has bound a lot's first port has it.
"""

import functools
import itertools
import socket
from collections.abc import Iterator

from devcluster.shell import DevclusterError

_ADDRESS = "127.0.0.1"
_LOTS, _PORTS, _FIRST_PORT, _FIRST_NETWORK = 25, 400, 20000, 10


def free_ports(count: int, address: str = _ADDRESS) -> list[int]:
    """Different ports of this process that nobody uses on the address now; what was given out longest ago comes first."""
    found = list(itertools.islice((port for port in itertools.islice(_turns(), _PORTS) if _is_free(address, port)), count))
    if len(found) < count:
        raise DevclusterError(f"{len(found)} of this process's {_PORTS} ports are free on {address}, and {count} are needed")
    return found


def network() -> str:
    """The first half of this process's addresses, as `127.10`: each of their ports is its own."""
    return f"127.{_FIRST_NETWORK + _lot()[0]}"


@functools.cache
def _turns() -> Iterator[int]:
    """This process's ports in turn for ever, without the one by which it has them."""
    first = _FIRST_PORT + _lot()[0] * _PORTS
    return itertools.cycle(range(first + 1, first + _PORTS))


@functools.cache
def _lot() -> tuple[int, socket.socket]:
    """The number of this process's lot, and what keeps it."""
    for number in range(_LOTS):
        if held := _bound(_ADDRESS, _FIRST_PORT + number * _PORTS):
            return number, held
    raise DevclusterError(f"{_LOTS} processes have ports of their own already")


def _is_free(address: str, port: int) -> bool:
    held = _bound(address, port)
    if held:
        held.close()
    return held is not None


def _bound(address: str, port: int) -> socket.socket | None:
    """A socket there; None if somebody else uses it."""
    made = socket.socket()
    try:
        made.bind((address, port))
    except OSError:
        made.close()
        return None
    return made
