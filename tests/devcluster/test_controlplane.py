"""The control plane for integration tests: real components, several at once, and nothing left however it ends."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from devcluster import components, loopback, procs
from devcluster.controlplane import ControlPlane
from devcluster.shell import DevclusterError

MAKER = """
import json, time
from devcluster.controlplane import ControlPlane
plane = ControlPlane(controllers=False, scheduler=False).start()
print(json.dumps({"home": str(plane.home), "pids": list(plane.pids.values())}), flush=True)
time.sleep(600)
"""


def eventually(what: str, true: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if procs.start_time(pid) is not None]


def test_two_side_by_side_are_two_clusters() -> None:
    with ControlPlane() as one, ControlPlane(controllers=False, scheduler=False) as other:
        assert one.server != other.server
        one.kubectl("create", "namespace", "only-here")
        assert "only-here" in one.kubectl("get", "namespaces", "-o", "name")
        assert "only-here" not in other.kubectl("get", "namespaces", "-o", "name")

        # With controllers: a Job gets its pod. Without: a pod can be made although no ServiceAccount exists.
        one.kubectl("create", "job", "greet", "--image=none")
        eventually("the Job's pod", lambda: "greet" in one.kubectl("get", "pods", "-o", "name"))
        other.kubectl("run", "alone", "--image=none")
        assert other.kubectl("get", "serviceaccounts", "-o", "name") == ""

        written = [json.loads(line) for line in one.audit_log.read_text().splitlines()]
        jobs = [entry["verb"] for entry in written if entry.get("objectRef", {}).get("resource") == "jobs"]
        assert "create" in jobs
        homes, pids = [one.home, other.home], [*one.pids.values(), *other.pids.values()]
        assert alive(pids) == pids
    assert [home for home in homes if home.exists()] == []
    assert alive(pids) == []


def test_a_killed_maker_leaves_no_process_and_no_folder() -> None:
    maker = subprocess.Popen([sys.executable, "-c", MAKER], stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    made = json.loads(maker.stdout.readline())
    assert len(alive(made["pids"])) == 3  # keeper, etcd, API server
    maker.kill()
    maker.communicate()
    eventually("the components to end", lambda: not alive(made["pids"]))
    eventually("the folder to be gone", lambda: not Path(made["home"]).exists())


def test_a_component_that_cannot_start_is_named_with_the_end_of_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    right = components.api_server
    monkeypatch.setattr(components, "api_server", lambda plane: [*right(plane), "--no-such-flag"])
    plane = ControlPlane(controllers=False, scheduler=False)
    with pytest.raises(DevclusterError, match=r"(?s)kube-apiserver ended with 1\. .*unknown flag: --no-such-flag"):
        plane.start()
    assert plane.pids == {}


def test_a_port_taken_meanwhile_is_given_up_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        taken = [somebody.getsockname()[1]]
        fresh = loopback.free_ports

        def once_taken(count: int) -> list[int]:
            return [taken.pop(), *fresh(count - 1)] if taken else fresh(count)

        monkeypatch.setattr(loopback, "free_ports", once_taken)
        with ControlPlane(controllers=False, scheduler=False) as plane:
            assert taken == []
            assert plane.server != f"https://127.0.0.1:{somebody.getsockname()[1]}"


def test_one_more_process_ends_with_it_and_its_end_before_that_is_told() -> None:
    policy = '{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "None"}]}'
    flags = {"kube-apiserver": ["--service-cluster-ip-range=10.77.0.0/16"]}
    with ControlPlane(controllers=False, scheduler=False, audit_policy=policy, flags=flags) as plane:
        own = ("get", "service", "kubernetes", "--ignore-not-found", "-o", "jsonpath={.spec.clusterIP}")
        eventually("the API server's own Service, made after it is ready", lambda: plane.kubectl(*own) == "10.77.0.1")
        assert plane.audit_log.read_text() == ""
        ended = plane.spawn("helper", ["/bin/sh", "-c", "echo $SAID; exit 3"], {"SAID": "goodbye"})
        ended.wait()
        with pytest.raises(DevclusterError, match=r"(?s)helper ended with 3.*goodbye"):
            plane.check()
        pid = plane.spawn("helper", ["/bin/sleep", "600"]).pid
        plane.check()
    assert alive([pid]) == []


def test_stopping_twice_or_before_starting_does_nothing() -> None:
    plane = ControlPlane()
    plane.stop()
    with pytest.raises(DevclusterError, match="not started"):
        _ = plane.server
