"""The bench's pure parts: what the audit log counts, what the watches time, which figures come of it, and the table."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from finetune_operator import kinds

from devcluster import nodebinary
from tests.bench.control_plane import __main__ as bench
from tests.bench.control_plane import audit, copies, figures, memory, processes, progress
from tests.bench.control_plane.adapters import FINETUNES, JOBS, Adapter
from tests.bench.control_plane.audit import AuditLog
from tests.bench.control_plane.figures import Row
from tests.bench.control_plane.progress import Step
from tests.bench.control_plane.recorder import Kind
from tests.bench.control_plane.statistics import quantile

OPERATOR = "system:serviceaccount:finetune-system:finetune-operator"
JOB_CONTROLLER = "system:serviceaccount:kube-system:job-controller"


def entry(
    verb: str,
    resource: str,
    *,
    user: str = OPERATOR,
    subresource: str = "",
    code: int = 200,
    stage: str = "ResponseComplete",
    query: str = "",
) -> Any:
    """A line of the audit log."""
    ref = {"resource": resource, **({"subresource": subresource} if subresource else {})}
    of = {"objectRef": ref, "requestURI": f"/{resource}?{query}", "responseStatus": {"code": code}}
    return {"verb": verb, "stage": stage, "user": {"username": user}, **of}


def test_every_request_is_counted_once_by_user_and_by_what_it_is() -> None:
    counted = audit.tally([
        entry("create", "jobs", code=201),
        entry("create", "jobs", code=409),
        entry("patch", "finetunes", subresource="status"),
        entry("create", "events", code=201),
        entry("list", "pods"),
        entry("list", "pods", query="continue=abc"),
        entry("watch", "pods", stage="ResponseStarted"),
        entry("watch", "pods"),  # its end, which is no second request
        entry("update", "leases"),
        entry("get", "leases"),
        entry("create", "pods", user=JOB_CONTROLLER, code=201),
    ]).summary()  # fmt: skip
    assert counted[OPERATOR] == {
        "reads": 2, "watches": 1, "writes": 4, "status_writes": 1, "events": 1, "leases": 2, "refused": {"409 create jobs": 1},
        "calls": {
            "create jobs": 2, "patch finetunes/status": 1, "create events": 1, "list pods": 1, "list pods (next page)": 1,
            "watch pods": 1, "update leases": 1, "get leases": 1,
        },
    }  # fmt: skip
    assert counted[JOB_CONTROLLER]["writes"] == 1


@pytest.mark.parametrize(
    ("line", "unsettles"),
    [
        pytest.param(entry("create", "pods", user=JOB_CONTROLLER), True, id="a write of anything"),
        pytest.param(entry("patch", "jobs", subresource="status", code=409), True, id="a refused one too, for it will be tried again"),
        pytest.param(entry("update", "leases"), False, id="not a Lease"),
        pytest.param(entry("list", "jobs"), False, id="not a read"),
    ],
)
def test_what_keeps_the_cluster_from_being_settled(line: dict[str, Any], unsettles: bool) -> None:
    assert audit.Tally().add(line) is unsettles


def test_the_log_is_read_from_a_position_to_its_last_whole_line(tmp_path: Path) -> None:
    file = tmp_path / "audit.log"
    file.write_text(json.dumps(entry("create", "jobs")) + "\n")
    log = AuditLog(file)
    position = log.position()
    with file.open("a") as more:
        more.write(json.dumps(entry("delete", "jobs")) + "\n" + json.dumps(entry("create", "pods"))[:20])
    entries, after = log.entries(position)
    assert [found["verb"] for found in entries] == ["delete"]
    with file.open("a") as more:
        more.write(json.dumps(entry("create", "pods"))[20:] + "\n")
    assert [found["objectRef"]["resource"] for found in log.entries(after)[0]] == ["pods"]


def test_the_load_generator_is_not_in_the_log() -> None:
    assert json.loads(audit.POLICY)["rules"][0] == {"level": "None", "users": ["devcluster-admin"]}


@pytest.mark.parametrize(
    ("user", "clusters"), [(JOB_CONTROLLER, True), ("system:kube-controller-manager", True), ("system:apiserver", True), (OPERATOR, False)]
)  # fmt: skip
def test_whose_request_it_is(user: str, clusters: bool) -> None:
    assert audit.of_the_cluster(user) is clusters


def test_the_first_child_of_an_owner_is_timed_and_a_second_one_noticed() -> None:
    kind = Kind(lambda metadata: metadata.get("labels", {}).get("owner"))
    mine = {"uid": "1", "labels": {"owner": "a"}}
    for event, metadata, now in (
        ("ADDED", {"uid": "0"}, 1.0), ("ADDED", mine, 2.0), ("ADDED", mine, 2.5), ("MODIFIED", mine, 3.0), ("DELETED", mine, 4.0),
        ("ADDED", {**mine, "uid": "2"}, 5.0),
    ):  # fmt: skip
        kind.seen(event, metadata, now)
    assert (kind.came, kind.alive, kind.gone_at, kind.surplus) == ({"a": 2.0}, {"2"}, 4.0, 1)


@pytest.mark.parametrize("adapter", [JOBS, FINETUNES])
def test_what_is_made_is_found_where_it_was_posted(adapter: Adapter) -> None:
    made = adapter.make("b00001")
    assert made["metadata"] == {"name": "b00001", "namespace": "bench"}
    assert adapter.collection.endswith(f"/{made['apiVersion']}/namespaces/bench/{made['kind'].lower()}s")
    assert [child.kind for child in adapter.children] == ["Job", "Pod"]


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (0.001, 1), (1.0, 100)])
def test_a_quantile_is_one_of_the_values(share: float, value: int) -> None:
    assert quantile(range(100, 0, -1), share) == value
    assert quantile([7], share) == 7


@pytest.mark.parametrize(
    ("used", "seconds"),
    [
        pytest.param([0.0, 1.0, 2.0, 2.02, 2.04], 2.0, id="busy for two seconds, then 2 % of a core"),
        pytest.param([0.0, 0.0, 0.0, 0.5, 0.5], 3.0, id="busy once more later"),
        pytest.param([0.0, 0.05, 0.1, 0.15, 0.2], 0.0, id="never busy"),
    ],
)
def test_when_a_process_came_to_rest(used: list[float], seconds: float) -> None:
    assert processes.last_busy([(100.0 + second, cpu) for second, cpu in enumerate(used)]) == seconds


def test_a_process_is_measured() -> None:
    assert processes.cpu_seconds(os.getpid()) > 0
    assert 5 < processes.peak_mib(os.getpid()) < 5000
    assert processes.machine_seconds() > processes.cpu_seconds(os.getpid())


def calls(writes: int, *, reads: int = 0, status: int = 0, events: int = 0) -> dict[str, int]:
    return {"writes": writes, "reads": reads, "status_writes": status, "events": events, "leases": 9}


def run(*, with_operator: bool) -> dict[str, Any]:
    """The raw result of a run with 10 objects."""
    took = {"seconds": {"p50": 0.005, "p99": 0.02, "max": 0.03}, "wall": 0.5}
    whole: dict[str, Any] = {
        "objects": 10,
        "singles": {"Job": took, "Pod": took},
        "burst": {
            "Job": took, "Pod": {**took, "wall": 0.75}, "cpu": {"kube-apiserver": 0.3, "etcd": 0.1}, "others_cores": 0.01,
            "calls": {JOB_CONTROLLER: calls(30)}, "peak_mib": {},
        },
        "delete": {"gone_seconds": {"parents": 1.0, "Job": 1.5, "Pod": 2.0}, "peak_mib": {}},
    }  # fmt: skip
    if with_operator:
        whole["burst"]["cpu"]["operator"] = 0.2
        whole["burst"]["calls"][OPERATOR] = calls(45, reads=20, status=10, events=5)
        whole["idle"] = {"seconds": 20.0, "cpu": {"operator": 0.1}, "calls": {JOB_CONTROLLER: calls(3)}, "peak_mib": {"operator": 80.0}}
        whole["restart"] = {
            "cpu": {"operator": 1.25}, "steady_seconds": 2.5, "calls": {OPERATOR: calls(1, reads=18)}, "peak_mib": {"operator": 85.0},
        }  # fmt: skip
        whole["gap"] = {"stop_seconds": 0.4, "Job": 1.4, "Pod": 1.5}
        whole["beside"] = {"objects": 5, "Job": {**took, "wall": 0.9}, "cpu": {"operator": 0.03}}
        whole["burst"]["peak_mib"], whole["delete"]["peak_mib"] = {"operator": 100.5}, {"operator": 90.0}
    return whole


SHARED = {
    "burst_first_child_p50_ms": 5, "burst_first_child_p99_ms": 20, "all_jobs_s": 0.5, "all_pods_s": 0.75, "others_cores": 0.01,
}  # fmt: skip
OWN = {
    **SHARED, "objects": 10, "all_writes_per_object": 7.5, "writes_per_object": 4.5, "status_writes_per_object": 1,
    "events_per_object": 0.5, "reads_per_object": 2, "cpu_ms_per_object": 20, "all_cpu_ms_per_object": 60, "peak_rss_mib": 100.5,
    "idle_writes": 0, "idle_reads": 0, "idle_cpu_percent": 0.5,
}  # fmt: skip


def test_the_figures_of_both_runs() -> None:
    assert figures.figures(run(with_operator=False), run(with_operator=True)) == {
        **OWN, "first_child_p50_ms": 5, "first_child_p99_ms": 20, "delete_s": 2, "restart_writes": 1,
        "restart_gap_s": 1.4, "restart_stop_s": 0.4,
        "restart_cpu_s": 1.25, "restart_steady_s": 2.5, "beside_all_jobs_s": 0.9, "beside_cpu_ms_per_object": 6,
        **{f"floor_{key}": value for key, value in SHARED.items()},
        "floor_first_child_p50_ms": 5, "floor_first_child_p99_ms": 20, "floor_all_writes_per_object": 3, "floor_cpu_ms_per_object": 40,
        "floor_delete_s": 2,
    }  # fmt: skip


def test_the_figures_of_idling_alone_have_the_sweeps_in_them() -> None:
    whole = {key: value for key, value in run(with_operator=True).items() if key in ("objects", "burst", "idle")}
    asked = {**calls(0, reads=40), "calls": {"list finetunes": 4, "list finetunes (next page)": 36}}
    whole["sweeps"] = {"seconds": 60.0, "cpu": {"operator": 6.3}, "calls": {OPERATOR: asked}, "peak_mib": {"operator": 90.0}}
    assert figures.idle_figures(whole) == {**OWN, "sweep_cpu_s": 1.5, "idle_cpu_percent": 1.0}


def lives() -> dict[str, Any]:
    """The raw result of eight that live, and eight that train beside them."""

    def restart(cpu: float, mib: float) -> dict[str, Any]:
        return {"cpu": {"operator": cpu}, "calls": {OPERATOR: calls(0, reads=18)}, "peak_mib": {"operator": mib}}

    idle = {"seconds": 10.0, "cpu": {"operator": 0.02}, "calls": {OPERATOR: calls(1, reads=2), JOB_CONTROLLER: calls(9)}}
    return {
        "objects": 8, "live_cache_kib": 44.5, "training_cache_kib": 20.25,
        "life": {
            "phases": ["Fetching", "Training", "Live"], "cpu": {"operator": 0.3}, "calls": {OPERATOR: calls(12), JOB_CONTROLLER: calls(9)},
        },
        "few": {"restart": restart(0.6, 70.0)},
        "live": {"restart": restart(0.66, 70.75), "idle": idle},
        "training": {"restart": restart(0.68, 70.875), "idle": idle},
    }  # fmt: skip


def test_what_one_costs_that_serves_or_trains_is_what_is_more_where_there_are_more() -> None:
    idle = {"idle_writes": 1, "idle_reads": 2, "idle_cpu_percent": 0.2, "restart_writes": 0}
    live = {"kib_per_object": 44.5, "peak_rss_mib": 70.75, "restart_cpu_s": 0.66, "restart_cpu_ms_per_object": 7.5, **idle}
    training = {"kib_per_object": 20.25, "peak_rss_mib": 70.875, "restart_cpu_s": 0.68, "restart_cpu_ms_per_object": 2.5, **idle}
    assert figures.life_figures(lives()) == {
        "live_objects": 8, "life_writes": 12, "life_phases": 3, "writes_per_transition": 4, "life_cpu_ms": 300,
        **{f"live_{key}": value for key, value in live.items()}, **{f"training_{key}": value for key, value in training.items()},
    }  # fmt: skip


def test_a_copy_is_as_large_as_its_model_and_can_be_made() -> None:
    server = {"uid": "u1", "resourceVersion": "5", "managedFields": [1]}
    meta = {"name": "live00000-a1", "namespace": "bench", "labels": {"a": "live00000"}, **server}
    labels = {"kept": "x", "controller-uid": "u1", "job-name": "live00000-a1"}
    spec = {"selector": {"matchLabels": {}}, "completions": 1, "template": {"metadata": {"labels": labels}, "spec": {"a": "live00000"}}}
    copied = copies.renamed({"metadata": meta, "spec": spec, "status": {"succeeded": 1}}, {"live00000": "live00007", "u1": "u2"})
    assert copied["metadata"]["uid"] == "u2"
    assert copies.postable(kinds.JOB, copied) == {
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": "live00007-a1", "namespace": "bench", "labels": {"a": "live00007"}},
        "spec": {"completions": 1, "template": {"metadata": {"labels": {"kept": "x"}}, "spec": {"a": "live00007"}}},
    }  # fmt: skip
    headless, addressed = ({"metadata": meta, "spec": {"clusterIP": ip, "clusterIPs": [ip]}} for ip in ("None", "10.0.0.1"))
    assert "clusterIP" in copies.postable(kinds.SERVICE, headless)["spec"]
    assert copies.postable(kinds.SERVICE, addressed)["spec"] == {}
    pod = {"metadata": meta, "spec": {"nodeName": "n", "topologySpreadConstraints": [1]}}
    assert copies.postable(kinds.POD, pod)["spec"] == {"nodeName": "n"}
    assert copies.numbered("live", 2, first=9) == ["live00009", "live00010"]


def test_what_a_cache_takes_is_counted_for_each() -> None:
    meta = {"name": "live00000", "namespace": "bench", "uid": "u1", "resourceVersion": "5"}
    words = [f"{number:06d}-{number * 7919:08x}" for number in range(1000)]
    small, large = (memory.cache_kib({kinds.FINETUNE: [{"metadata": meta, "spec": {"words": words[:n]}}]}, "live00000") for n in (1, 200))
    assert 2.5 < large - small < 4, "of 3 KiB"


def test_every_row_has_its_figure_and_its_floor() -> None:
    found = {**figures.figures(run(with_operator=False), run(with_operator=True)), **figures.life_figures(lives())}
    assert [row.key for row in figures.ROWS if row.key not in found] == ["sweep_cpu_s"]  # of --idle-only
    assert [row.floor for row in figures.ROWS if row.floor and row.floor not in found] == []


@pytest.mark.parametrize(
    ("value", "floor", "verdict"),
    [
        pytest.param(20.0, 1.0, True, id="below the goal"),
        pytest.param(30.0, 2.0, True, id="above it, on a machine that is slow in the floor too"),
        pytest.param(33.0, 2.0, False, id="above both"),
    ],
)
def test_a_goal_is_met_by_itself_or_by_its_ratio_to_the_floor(value: float, floor: float, verdict: bool) -> None:
    row = Row("until all Jobs exist", "all_jobs_s", lambda objects: 20 * objects / 1000, 16, "floor_all_jobs_s")
    assert figures.met(row, {"objects": 1000, "all_jobs_s": value, "floor_all_jobs_s": floor}) is verdict
    assert figures.met(Row("", "all_jobs_s"), {"all_jobs_s": value}) is None


@pytest.mark.parametrize(
    ("key", "goals"),
    [
        ("all_jobs_s", {100: 2, 1000: 20, 5000: 100}),
        ("restart_cpu_s", {100: 1.5, 1000: 1.5, 5000: 7.5}),
        ("peak_rss_mib", {100: 150, 1000: 150, 5000: 300}),
        ("writes_per_object", {100: 6, 5000: 6}),
    ],
)
def test_goals_by_size(key: str, goals: dict[int, float]) -> None:
    goal = next(row.goal for row in figures.ROWS if row.key == key)
    assert goal is not None
    assert {objects: goal(objects) for objects in goals} == goals


def test_the_table() -> None:
    found = {"objects": 1000, "all_jobs_s": 30.25, "floor_all_jobs_s": 1.25, "writes_per_object": 4, "restart_steady_s": 2.345}
    assert figures.table(found).splitlines() == [
        "                                 measured  floor  ratio  goal",
        "burst: until all Jobs exist (s)      30.2   1.25   24.2  <= 20 or 16 x floor  MISSED",
        "operator's writes per object            4                <= 6                 met",
        "restart: until it rests (s)          2.35",
    ]


@pytest.mark.parametrize(("flags", "writes", "status"), [(["--strict"], 7, 1), (["--strict"], 6, 0), ([], 7, 0)])
def test_a_goal_that_is_missed_ends_a_strict_run_with_1(
    flags: list[str], writes: int, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    async def seen(*_: object) -> figures.Figures:
        return {"objects": 10, "writes_per_object": writes, "restart_steady_s": 1e9, "others_cores": 0.0}

    monkeypatch.setattr(bench, "compare", seen)
    monkeypatch.setattr(nodebinary, "ensure", lambda: None)
    monkeypatch.setattr("sys.argv", ["bench", "--out", str(tmp_path), *flags])
    assert bench.main() == status


@pytest.mark.parametrize(
    ("elapsed", "done", "left"),
    [
        pytest.param(4.0, 0.05, 6 + 50, id="as planned while little is done"),
        pytest.param(30.0, 0.25, 90 + 50, id="by its own pace once a tenth is done"),
        pytest.param(15.0, 0.0, 50, id="later than planned"),
    ],
)
def test_the_time_left(elapsed: float, done: float, left: float) -> None:
    assert progress.seconds_left(Step("burst", 10), [Step("idle", 20), Step("delete", 30)], elapsed, done) == left


def test_progress_is_told_at_each_step_and_not_at_every_turn(capsys: pytest.CaptureFixture[str]) -> None:
    told = progress.Progress([Step("set-up", 10), Step("burst", 20), Step("delete", 200)])
    told.step("burst")
    told.tell(1, 10)
    told.step("delete")
    told.tell(5, 10)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("s  ", 1)[1] for line in lines] == ["burst (about 4 min left)", "delete (about 3 min left)"]
