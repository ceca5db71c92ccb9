"""The plugin's commands through the real kubectl, which must know each of their flags, against an API server in memory."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_operator import names
from kubectl_finetune import __main__ as command

from charts.helm import unpacked
from tests.unit.plugin import experiments
from tests.unit.plugin.apiserver import Api, serving
from tests.unit.plugin.cluster import recorded, rolling

FINETUNES = "/apis/finetune.dev/v1alpha1/namespaces/guard/finetunes"
PAGE = "/work/revisions/6364d116/evaluations/tuned-c4c8b72f/report.html"
JOB = {"metadata": {"name": "bot-fetch"}, "spec": {"template": {"spec": {"containers": [{"image": "trainer:1"}]}}}}
Run = Callable[..., int]


@pytest.fixture
def api() -> Api:
    return Api({f"{FINETUNES}/bot": rolling()})


@pytest.fixture
def run(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """The plugin's exit code, in a folder of its own, with the project's kubectl first on PATH."""
    monkeypatch.setenv("PATH", str(unpacked("kubectl").parent), prepend=":")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with serving(api) as address:
        config: dict[str, Any] = {
            "apiVersion": "v1", "kind": "Config", "current-context": "it", "users": [{"name": "eve", "user": {"token": "t"}}],
            "clusters": [{"name": "it", "cluster": {"server": address}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "eve"}}],
        }  # fmt: skip
        (tmp_path / "config").write_text(yaml.safe_dump(config))
        yield lambda *words: command.main([*words, "-n", "guard", "--context", "it", "--kubeconfig", str(tmp_path / "config")])


def test_status_asks_for_the_finetune_and_its_events(api: Api, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    event = {"type": "Normal", "reason": "Rollout", "message": "step 1 of 2", "lastTimestamp": "2026-11-24T22:32:30Z"}
    api.lists["/api/v1/namespaces/guard/events"] = [event]
    assert run("status", "bot") == 0
    told = capsys.readouterr().out
    assert "guard/bot  RollingOut" in told
    assert "Rollout: step 1 of 2" in told
    selector = next(query["fieldSelector"] for _, path, query in api.requests if path.endswith("/events"))
    assert selector == ["involvedObject.kind=FineTune,involvedObject.name=bot"]


def test_a_training_is_asked_through_the_api_servers_proxy(api: Api, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    api.objects[f"{FINETUNES}/bot"] = recorded("Training", training={"revision": "6364d116", "attempt": 1, "step": 0, "totalSteps": 50})
    pod = {"metadata": {"name": "bot-a1-0", "annotations": {names.JOB_INDEX: "0"}}, "status": {"phase": "Running"}}
    api.lists |= {"/api/v1/namespaces/guard/events": [], "/api/v1/namespaces/guard/pods": [pod]}
    api.raw["/api/v1/namespaces/guard/pods/bot-a1-0:8080/proxy/progress"] = {
        "stage": "train",
        "state": "training",
        "step": 21,
        "totalSteps": 50,
        "percent": 42,
    }
    assert run("status", "bot") == 0
    assert "42 %  step 21 of 50" in capsys.readouterr().out


def test_a_verb_patches_the_annotation_and_tells_the_answer(api: Api, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pause", "bot") == 0
    assert capsys.readouterr().out == "rollout a1b2c3d4: no further step is taken until it is resumed\n"
    assert api.objects[f"{FINETUNES}/bot"]["metadata"]["annotations"][names.CONTROL] == "pause:a1b2c3d4"
    assert next(query["fieldManager"] for method, _, query in api.requests if method == "PATCH") == ["kubectl-finetune"]


def test_who_may_not_is_told_what_to_ask_for(api: Api, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    api.forbids = "PATCH"
    assert run("promote", "bot") == 1
    assert "is forbidden" in (told := capsys.readouterr().err)
    assert "Ask for the ClusterRole `edit`" in told


def test_a_finetune_that_is_not_there(api: Api, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    api.lists[FINETUNES] = [api.objects[f"{FINETUNES}/bot"]]
    assert run("abort", "both") == 1
    assert capsys.readouterr().err == "error: there is no FineTune both; there are: bot\n"


def test_a_report_is_fetched_and_nothing_is_left(api: Api, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    api.objects = {f"{FINETUNES}/bot": {**recorded("Live"), "metadata": {**recorded("Live")["metadata"], "namespace": "guard"}}}
    api.lists["/apis/apps/v1/namespaces/guard/deployments"] = []
    api.lists["/apis/batch/v1/namespaces/guard/jobs"] = [JOB]
    api.files[PAGE] = b"<html>\xc3\xbc</html>" * 1000
    assert run("report", "bot") == 0
    assert capsys.readouterr().out == "bot-6364d116-evaluation.html\n"
    assert (tmp_path / "bot-6364d116-evaluation.html").read_bytes() == api.files[PAGE]
    assert list(api.objects) == [f"{FINETUNES}/bot"], "the reader is removed"
    assert next(query["fieldManager"] for method, _, query in api.requests if method == "POST") == ["kubectl-finetune"]


def test_an_ab_test_reads_every_routers_log_and_the_key(api: Api, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finetune = rolling(experiment={"weight": 50, "since": "2026-11-01T12:00:00Z"})
    finetune["spec"]["rollout"] = {"experiment": {"weight": 50, "log": {"secretName": "bot-ab"}}}
    pods, lines = "/api/v1/namespaces/guard/pods", [*experiments.log(200)]
    containers = {"containers": [{"name": "envoy", "image": "envoy:1"}]}
    routers = {
        f"{pods}/r-{i}": {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": f"r-{i}", "namespace": "guard"}, "spec": containers}
        for i in (0, 1)
    }
    api.objects = {f"{FINETUNES}/bot": finetune, **routers}
    api.objects["/api/v1/namespaces/guard/secrets/bot-ab"] = {
        "kind": "Secret", "apiVersion": "v1", "metadata": {"name": "bot-ab"}, "data": {"key": base64.b64encode(experiments.KEY).decode()},
    }  # fmt: skip
    api.lists[pods] = list(routers.values())
    api.logs = {f"{pods}/r-{i}/log": "".join(lines[i::2]) for i in (0, 1)}
    (tmp_path / "solved.csv").write_text("user,solved\n" + "".join(f"{user},{value}\n" for user, value in experiments.solved(200)))
    assert run("ab", "bot", "--outcomes", "solved.csv") == 0
    told = capsys.readouterr().out
    assert f"200 users  ·  {len(lines)} requests" in told
    assert "200 rows met the log" in told
    assert [query["labelSelector"] for _, path, query in api.requests if path == pods] == [
        ["finetune.dev/name=bot,finetune.dev/component=router"]
    ]
    asked = [query for _, path, query in api.requests if path.endswith("/log")]
    assert [(q["container"], q["sinceTime"], q.get("tailLines")) for q in asked] == [(["envoy"], ["2026-11-01T12:00:00Z"], None)] * 2


def test_who_may_not_read_the_key_cannot_find_users(api: Api, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finetune = rolling(experiment={"weight": 50, "since": "2026-11-01T12:00:00Z"})
    finetune["spec"]["rollout"] = {"experiment": {"weight": 50, "log": {"secretName": "bot-ab"}}}
    api.objects = {f"{FINETUNES}/bot": finetune}
    api.forbids_path = "/api/v1/namespaces/guard/secrets/bot-ab"
    (tmp_path / "ab.log").write_text("".join(experiments.log(200)))
    (tmp_path / "solved.csv").write_text("user,solved\nuser-1,1\n")
    assert run("ab", "bot", "--outcomes", "solved.csv", "--log", "ab.log") == 1
    assert "is forbidden" in capsys.readouterr().err
