"""Processes side by side are given different ports and addresses."""

import json
import socket
import subprocess
import sys

import pytest

from devcluster import loopback
from devcluster.shell import DevclusterError

ASKER = """
import json
from devcluster import loopback
print(json.dumps({"ports": loopback.free_ports(200), "network": loopback.network()}), flush=True)
input()
"""


def asker() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", ASKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def told(process: subprocess.Popen[str]) -> tuple[set[int], str]:
    assert process.stdout is not None
    answer = json.loads(process.stdout.readline())
    return set(answer["ports"]), answer["network"]


def test_two_processes_have_neither_a_port_nor_an_address_in_common() -> None:
    with asker() as one, asker() as other:
        (ports, network), (others, another) = told(one), told(other)
        mine = set(loopback.free_ports(200))
        assert (len(ports), len(others), len(mine | ports | others)) == (200, 200, 600)
        assert len({network, another, loopback.network()}) == 3
        for process in (one, other):
            process.communicate("\n")


def test_a_port_comes_again_late_and_only_while_nobody_uses_it() -> None:
    (port,) = loopback.free_ports(1)
    assert set(loopback.free_ports(100)).isdisjoint({port, *loopback.free_ports(100)})
    with socket.create_server(("127.0.0.1", port)):
        assert port not in given()
        with pytest.raises(DevclusterError, match="and 400 are needed"):
            loopback.free_ports(400)
    assert port in given()


def given() -> set[int]:
    """All ports that are free, each asked for alone."""
    return {loopback.free_ports(1)[0] for _ in range(loopback._PORTS)}


def test_a_port_on_all_addresses_is_one_that_nobody_uses_on_any() -> None:
    (port,) = loopback.free_ports(1)
    with socket.create_server(("127.0.1.9", port)):
        assert port not in [loopback.free_ports(1, "0.0.0.0")[0] for _ in range(loopback._PORTS)]
