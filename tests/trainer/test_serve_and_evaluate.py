"""The server as its users and the evaluator meet it: a process with a trained adapter on the tiny model."""

from __future__ import annotations

import json
import signal
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
from finetune_trainer import layout
from finetune_trainer.evaluate import rows
from finetune_trainer.exits import UserError

from devcluster import loopback
from tests.trainer.support import Stage, make_config, running, training, wait_until

QUESTION = [{"role": "user", "content": "Name the small lamp."}]


@dataclass
class Api:
    """A server and how it is asked."""

    stage: Stage
    port: int

    def get(self, path: str) -> tuple[int, str, Any]:
        return self._call(urllib.request.Request(f"http://127.0.0.1:{self.port}{path}"))

    def post(self, path: str, body: Any) -> tuple[int, str, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._call(urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"}))

    def chat(self, **more: Any) -> dict[str, Any]:
        status, text, _ = self.post("/v1/chat/completions", {"model": "bot", "messages": QUESTION, "temperature": 0, **more})
        assert status == 200, text
        return dict(json.loads(text))

    def answered(self) -> int:
        """Chats that it has answered since it started."""
        line = 'finetune_server_requests_total{code="200",path="/v1/chat/completions"} '
        return int(float(self.get("/metrics")[1].partition(line)[2].partition("\n")[0] or 0))

    def ready(self) -> bool:
        try:
            return self.get("/readyz")[0] == 200
        except OSError:
            return False

    def _call(self, request: urllib.request.Request) -> tuple[int, str, Any]:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read().decode(), response.headers
        except HTTPError as error:
            with error:
                return error.code, error.read().decode(), error.headers


@pytest.fixture(scope="module")
def artifact(work: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a short training leaves."""
    folder = tmp_path_factory.mktemp("artifact")
    config = make_config("train", work, tiny_model, run__path=str(folder / "a0"), training__epochs=3, training__learningRate=0.02)
    with training(folder / "pods", config) as [pod]:
        return Path(pod.ends(0).message["artifact"])


def serving(folder: Path, model: Path, *more: str) -> Any:
    (port,) = loopback.free_ports(1)
    argv = ["serve", "--model", str(model), "--served-model-name", "bot", "--host", "127.0.0.1", "--port", str(port), "--threads", "1"]
    return port, running(folder, [*argv, *more])


@pytest.fixture(scope="module")
def api(artifact: Path, work: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The tuned model, ready."""
    options = ("--adapter", str(artifact), "--revision", "1f2e3d4c", "--max-concurrency", "4")
    port, server = serving(tmp_path_factory.mktemp("server"), work / "models" / "tiny", *options)
    with server as stage:
        found = Api(stage, port)
        wait_until("readiness", lambda: found.ready() or not stage.process.is_alive())
        yield found


def test_a_chat_is_answered_with_usage_and_the_revision(api: Api) -> None:
    status, text, headers = api.post("/v1/chat/completions", {"model": "bot", "messages": QUESTION, "max_tokens": 5, "temperature": 0})
    document = json.loads(text)
    assert (status, document["object"], headers["x-finetune-revision"]) == (200, "chat.completion", "1f2e3d4c")
    [choice] = document["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] in ("length", "stop")
    assert document["usage"]["total_tokens"] == document["usage"]["prompt_tokens"] + document["usage"]["completion_tokens"]


def test_a_streamed_chat_is_the_same_text_in_pieces(api: Api) -> None:
    whole = api.chat(max_tokens=12)
    asked = {"model": "bot", "messages": QUESTION, "max_tokens": 12, "temperature": 0}
    _, text, headers = api.post("/v1/chat/completions", {**asked, "stream": True, "stream_options": {"include_usage": True}})
    events = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert headers["Content-Type"].startswith("text/event-stream")
    assert events.pop() == "[DONE]"
    documents = [json.loads(event) for event in events]
    assert documents.pop()["usage"] == whole["usage"]
    assert documents[0]["choices"][0]["delta"]["role"] == "assistant"
    assert documents[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    pieces = [document["choices"][0]["delta"].get("content", "") for document in documents]
    assert "".join(pieces) == whole["choices"][0]["message"]["content"]


def test_a_completion_goes_on_with_the_prompt(api: Api) -> None:
    status, text, _ = api.post("/v1/completions", {"model": "bot", "prompt": "This", "max_tokens": 3, "temperature": 0})
    document = json.loads(text)
    assert (status, document["object"], document["usage"]["completion_tokens"]) == (200, "text_completion", 3)


def test_the_same_seed_draws_the_same_answer(api: Api) -> None:
    drawn = [api.chat(max_tokens=12, temperature=1.5, seed=seed)["choices"][0]["message"]["content"] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_models_health_and_metrics(api: Api) -> None:
    api.chat(max_tokens=2)
    assert [model["id"] for model in json.loads(api.get("/v1/models")[1])["data"]] == ["bot"]
    assert api.get("/healthz")[:2] == (200, "ok\n")
    metrics = api.get("/metrics")[1]
    assert 'finetune_server_requests_total{code="200",path="/v1/chat/completions"}' in metrics
    assert "finetune_server_ready 1.0" in metrics
    assert 'finetune_server_answers_total{end="length"}' in metrics, "the answer was cut off"


CHAT, ASKED = "/v1/chat/completions", {"model": "bot", "messages": QUESTION}
REFUSALS: dict[str, tuple[str, Any, int, str | None]] = {
    "another model": (CHAT, {**ASKED, "model": "gpt"}, 404, "model"),
    "no messages": (CHAT, {**ASKED, "messages": []}, 400, "messages"),
    "a role nobody has": (CHAT, {**ASKED, "messages": [{"role": "x", "content": "a"}]}, 400, "messages[0].role"),
    "an answer longer than the context": (CHAT, {**ASKED, "max_tokens": 9999}, 400, "max_tokens"),
    "tools, which are not there": (CHAT, {**ASKED, "tools": [{"type": "x"}]}, 400, "tools"),
    "more answers than 16": (CHAT, {**ASKED, "n": 17}, 400, "n"),
    "text that is no JSON": ("/v1/completions", b"{", 400, None),
    "an empty prompt": ("/v1/completions", {"model": "bot", "prompt": ""}, 400, "prompt"),
    "a path that is not there": ("/v1/embeddings", {}, 404, None),
}


@pytest.mark.parametrize(("path", "body", "status", "param"), REFUSALS.values(), ids=REFUSALS)
def test_what_is_refused_is_named_in_openais_form(path: str, body: Any, status: int, param: str | None, api: Api) -> None:
    found, text, _ = api.post(path, body)
    error = json.loads(text)["error"]
    assert (found, error["param"], error["type"]) == (status, param, "invalid_request_error")


def evaluated(folder: Path, work: Path, tiny_model: Path, **overrides: Any) -> dict[str, Any]:
    document = make_config("evaluate", work, tiny_model, evaluation__path=str(folder), **overrides)
    folder.parent.mkdir(parents=True, exist_ok=True)
    config = folder.parent / f"{folder.name}.json"
    config.write_text(json.dumps(document))
    with running(folder.parent / f"{folder.name}-pod", ["evaluate", "--config", str(config)]) as stage:
        return stage.ends(0).message


def test_an_image_of_ones_own_scores_what_was_answered_before_it(api: Api, work: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder, handed = tmp_path / "tuned", tmp_path / "metric"
    asked = {
        "evaluation__metrics": [{"type": "Custom", "custom": {"folder": str(handed)}}, {"type": "TokenF1"}],
        "evaluation__endpoint": f"http://127.0.0.1:{api.port}/v1",
    }
    config = tmp_path / "ask.json"
    config.write_text(json.dumps(make_config("evaluate", work, tiny_model, evaluation__path=str(folder), **asked)))

    def ask(name: str) -> list[dict[str, Any]]:
        with running(tmp_path / name, ["ask", "--config", str(config)]) as stage:
            stage.ends(0)
        return [json.loads(line) for line in (handed / "in" / "rows.jsonl").read_text().splitlines()]

    given = ask("first")
    assert len(given) == 8
    with (handed / "out" / "scores.jsonl").open("w") as stream:
        for number, row in enumerate(given):
            stream.write(json.dumps({"id": row["id"], "score": number / 8, "note": "as it came"}) + "\n")
    answers, before = {row["id"]: row["answer"] for row in given}, api.answered()
    result = evaluated(folder, work, tiny_model, **asked)
    assert result["metrics"]["Custom"]["score"] == pytest.approx(sum(range(8)) / 64, abs=1e-6)
    lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert {line["id"]: line["answer"] for line in lines} == answers
    assert [line["notes"]["Custom"] for line in lines] == ["as it came"] * 8
    assert ask("again") == given, "an evaluation that counts hands out what it has"
    assert api.answered() == before > 0, "nothing is asked twice"


def test_both_models_are_scored_and_paired_by_row(api: Api, artifact: Path, work: Path, tiny_model: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.sql"
    schema.write_text("CREATE TABLE t(a); INSERT INTO t VALUES (1);")
    loss, exact = {"type": "Loss"}, {"type": "ExactMatch"}
    texts = [*({"type": name} for name in ("Contains", "TokenF1", "RougeL")), {"type": "Regex", "regex": {"pattern": r"\S+"}}]
    base = evaluated(tmp_path / "baseline", work, tiny_model, evaluation__metrics=[loss], evaluation__before={"enough": -100})
    asked = {"reference": "base", "artifact": str(artifact), "gate": {"minImprovement": 0.1}, "spent": {"gpus": 1}}
    tuned = evaluated(
        tmp_path / "tuned", work, tiny_model, evaluation__endpoint=f"http://127.0.0.1:{api.port}/v1",
        evaluation__metrics=[loss, exact, *texts], evaluation__adapterPath=str(artifact), evaluation__name="tuned",
        evaluation__reference=str(tmp_path / "baseline"),
        evaluation__report={**asked, "economics": {"pods": 1, "mostPods": 1, "podHour": 2.5}}, evaluation__concurrency=3,
        evaluation__server={"accelerator": None, "accelerators": 0, "runtime": "Transformers"},
    )  # fmt: skip
    assert base["metrics"]["Loss"]["n"] == tuned["metrics"]["ExactMatch"]["n"] == 8
    assert tuned["metrics"]["ExactMatch"]["score"] == 0, "a tiny model that was hardly trained knows nothing"
    assert {name: found["n"] for name, found in tuned["metrics"].items()} == dict.fromkeys(
        ("Loss", "ExactMatch", "Contains", "TokenF1", "RougeL", "Regex"), 8
    )
    paired = tuned["paired"]
    assert (paired["metric"], paired["n"]) == ("Loss", 8)
    assert paired["difference"] == pytest.approx(tuned["metrics"]["Loss"]["score"] - base["metrics"]["Loss"]["score"], abs=1e-5)
    assert paired["low"] > 0, "training helped"
    lines = [json.loads(line) for line in (tmp_path / "tuned" / "rows.jsonl").read_text().splitlines()]
    assert all(isinstance(line["answer"], str) for line in lines)
    page, card = (tmp_path / "tuned" / "report.html").read_text(), (tmp_path / "tuned" / "README.md").read_text()
    assert "against the base model" in page
    assert ("FewTestRows", "The score rests on 8 test rows.") in [(item["code"], item["message"]) for item in tuned["advice"]]
    assert [item["code"] for item in base["advice"]] == ["NotNeeded"]
    alone = (tmp_path / "baseline" / "report.html").read_text()
    assert "which reaches the 100.0000 bits/byte of evaluation.skipTrainingIfBaselineAtLeast" in alone
    for shown in (alone, page):
        assert "training rows: below 100 good ones tuning" in shown, "what prepare advised"
    assert "Losses by step" in page, "the curve that training left in the artifact"
    assert f"+{paired['difference']:.4f} bits/byte" in page
    assert f"{paired['difference']:.4f} [{paired['low']:.4f}, {paired['high']:.4f}]" in card
    assert "answering" not in base, "a loss asks no server"
    test, limit = rows.test_rows(work / "data" / "1f2e3d4c"), make_config("evaluate", work, tiny_model)["evaluation"]["maxNewTokens"]
    counted = [api.chat(messages=list(row.messages), max_tokens=limit, seed=0)["usage"] for row in test]
    tokens = [sum(usage[name] for usage in counted) for name in ("prompt_tokens", "completion_tokens")]
    answering = tuned["answering"]
    assert [answering[name] for name in ("rows", "inputTokens", "outputTokens", "concurrency")] == [8, *tokens, 3]
    assert answering["seconds"] > 0
    assert (answering.get("accelerator"), answering["accelerators"], answering["runtime"]) == (None, 0, "Transformers")
    assert f"8 in {answering['seconds']:,.1f} s with at most 3 open at once" in page
    layout.verify(tmp_path / "tuned")
    again = evaluated(tmp_path / "tuned", work, tiny_model, evaluation__endpoint="http://127.0.0.1:1/v1")
    assert again == tuned, "a complete folder is reported, not made again"


def test_a_reference_that_is_no_query_is_named_before_anything_is_asked(work: Path, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "schema.sql").write_text("CREATE TABLE t(a);")
    metric = {"type": "SqlExecution", "sqlExecution": {"schemaMount": str(tmp_path / "schema.sql")}}
    config = tmp_path / "run.json"
    config.write_text(json.dumps(make_config("evaluate", work, tiny_model, evaluation__metrics=[metric])))
    with running(tmp_path / "pod", ["evaluate", "--config", str(config)]) as stage:
        stage.ends(20)
        assert "its reference query does not run" in stage.message["error"]["message"]


def test_rows_that_the_live_model_was_trained_on_are_left_out_and_counted(work: Path, tiny_model: Path, tmp_path: Path) -> None:
    sealed = [json.loads(line) for line in (work / "data" / "1f2e3d4c" / "test.jsonl").read_text().splitlines()]
    live = tmp_path / "live"
    with layout.transaction(live, layout.DATA_MANIFEST) as folder:
        (folder.folder / "train-hashes.txt").write_text("".join(f"{row['id']}\n" for row in sealed[:3]))
    found = evaluated(
        tmp_path / "left", work, tiny_model, evaluation__metrics=[{"type": "Loss"}], evaluation__excludeTrainedOn=str(live)
    )  # fmt: skip
    assert (found["excluded"], found["metrics"]["Loss"]["n"]) == (3, 5)


def test_an_evaluation_of_nothing_but_rows_that_the_live_model_was_trained_on_is_refused(tmp_path: Path) -> None:
    with layout.transaction(tmp_path / "live", layout.DATA_MANIFEST) as live:
        (live.folder / "train-hashes.txt").write_text("a\nb\nc\n")
    test = [rows.TestRow(name, ({"role": "user", "content": "?"},), "!") for name in ("a", "b")]
    with pytest.raises(UserError, match="trained on all 2 test rows") as found:
        rows.without_trained_on(test, tmp_path / "live")
    assert found.value.reason == "NoComparableRows"
    assert "data.test" in found.value.fix


def test_a_row_may_hold_the_line_separators_of_unicode(tmp_path: Path) -> None:
    odd = "a\u2028b\u2029c\u0085d\x0be"
    question = {"id": "1", "messages": [{"role": "user", "content": odd}], "reference": odd}
    with layout.transaction(tmp_path / "data", layout.DATA_MANIFEST) as data:
        (data.folder / rows.TEST).write_text(json.dumps(question, ensure_ascii=False) + "\n")
    assert rows.test_rows(tmp_path / "data") == [rows.TestRow("1", ({"role": "user", "content": odd},), odd)]
    with layout.transaction(tmp_path / "scores") as scores:
        rows.write(scores.folder / rows.ROWS, [rows.ScoredRow("1", odd, {"ExactMatch": 1.0})])
    assert rows.read(tmp_path / "scores") == [rows.ScoredRow("1", odd, {"ExactMatch": 1.0})]


def test_an_answer_under_way_is_given_before_the_server_ends(work: Path, tmp_path: Path) -> None:
    port, server = serving(tmp_path / "server", work / "models" / "tiny")
    with server as stage:
        api = Api(stage, port)
        wait_until("readiness", lambda: api.ready() or not stage.process.is_alive())
        body = {"model": "bot", "prompt": "This", "max_tokens": 400, "temperature": 0, "ignore_eos": True, "stream": True}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=60) as response:
            first = response.readline()
            stage.signal(signal.SIGTERM)
            rest = response.read().decode()
        assert first.startswith(b"data: ")
        assert '"finish_reason":"length"' in rest
        assert rest.rstrip().endswith("[DONE]")
        stage.ends(0)


def test_a_folder_that_cannot_be_served_ends_with_its_class(tmp_path: Path) -> None:
    _, server = serving(tmp_path / "pod", tmp_path / "nothing")
    with server as stage:
        stage.ends(24)
        assert stage.message["error"]["reason"] == "FolderMissing"
