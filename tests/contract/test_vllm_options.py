"""Every argument list for vLLM holds to what vLLM itself said of its options (vllm_options.json, by tools/vllm_options.py)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_operator.api.load import load_spec
from finetune_operator.build import arm
from finetune_operator.build.pods import Devices, Images

from tests.contract.vllm_lists import ADAPTER, MODEL, case, cases, options

HERE = Path(__file__).resolve().parent
RECORD: dict[str, Any] = json.loads((HERE / "vllm_options.json").read_text())
VALUES = HERE.parent.parent / "charts" / "finetune-operator" / "values.yaml"
CASES = cases()
REFUSED = {
    "an option misspelt": ([MODEL, "--tensor-paralel-size", "1"], "vLLM has no --tensor-paralel-size"),
    "an option cut short": ([MODEL, "--max-lora-ran", "16"], "vLLM has no --max-lora-ran"),
    "the model given by an option": (["--model", MODEL], "the model does not come first"),
    "no model": ([], "the model does not come first"),
    "two models": ([MODEL, MODEL], f"nothing takes {MODEL}"),
    "a rank between two": ([MODEL, "--max-lora-rank", "12"], "--max-lora-rank does not take 12"),
    "a word for a number": ([MODEL, "--port", "http"], "--port does not take http"),
    "an option without its value": ([MODEL, "--port", "--enable-lora"], "--port takes one value, not 0"),
    "a flag with a value": ([MODEL, "--enable-lora=true"], "--enable-lora takes no value"),
}


def problem(arguments: list[str]) -> str | None:
    """The first thing that the record does not allow; None if it allows all."""
    if not arguments or arguments[0].startswith("-"):
        return "the model does not come first"
    starts = [n for n, argument in enumerate(arguments) if argument.startswith("--")] + [len(arguments)]
    if starts[0] > len(RECORD["positional"]):
        return f"nothing takes {arguments[len(RECORD['positional'])]}"
    groups = (arguments[a:b] for a, b in pairwise(starts))
    return next((wrong for group in groups if (wrong := option_problem(group))), None)


def option_problem(group: list[str]) -> str | None:
    """What is wrong with an option and the values that follow it."""
    option, joined, value = group[0].partition("=")
    values = [*([value] if joined else []), *group[1:]]
    known = RECORD["options"].get(option)
    if known is None:
        return f"vLLM has no {option}"
    if known["takes"] == "none":
        return f"{option} takes no value" if values else None
    if not values or (known["takes"] == "one" and len(values) > 1):
        return f"{option} takes {known['takes']} value, not {len(values)}"
    bad = [v for v in values if known.get("number") and (not v.isdigit() or int(v) not in known.get("choices", [int(v)]))]
    return f"{option} does not take {bad[0]}" if bad else None


def test_every_list_holds_to_the_record() -> None:
    assert {key: wrong for key, built in CASES.items() if (wrong := problem(built.arguments))} == {}


@pytest.mark.parametrize("key", REFUSED)
def test_the_record_refuses(key: str) -> None:
    arguments, why = REFUSED[key]
    assert problem(arguments) == why


def test_the_record_is_of_the_options_in_use() -> None:
    assert sorted(RECORD["options"]) == sorted({option for built in CASES.values() for option in options(built.arguments)})


def test_the_record_is_of_the_charts_version() -> None:
    image = yaml.safe_load(VALUES.read_text())["images"]["vllm"]
    assert re.search(r":v(.+)$", image)[1] == RECORD["version"]  # type: ignore[index]


@pytest.mark.parametrize(("rank", "room"), [(1, 1), (2, 8), (8, 8), (12, 16), (16, 16), (17, 32), (257, 320), (321, 512), (512, 512)])
def test_the_room_for_an_adapter_is_the_next_rank_that_vllm_has(rank: int, room: int) -> None:
    assert list(arm.VLLM_RANKS) == RECORD["options"]["--max-lora-rank"]["choices"]
    arguments = case(ADAPTER, rank, 1, "bot").arguments
    assert arguments[arguments.index("--max-lora-rank") + 1] == str(room)


def test_an_arm_asks_vllm_for_its_health_where_it_answers_and_sets_what_it_reads() -> None:
    spec = load_spec({"metadata": {"name": "bot"}, "spec": SPEC})
    served = arm.Served(MODEL, ADAPTER, "1f2e3d4c", "bot")
    server = arm.server(spec, served, Images("trainer:1", "router:1", "vllm:1"), Devices())
    probed = {server[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe")}
    assert (server["image"], probed) == ("vllm:1", set(RECORD["health"]))
    assert [e["name"] for e in server["env"] if e["name"].startswith("VLLM_")] == RECORD["environment"]
    assert server["args"] == CASES["an adapter on 1 devices"].arguments


def probe(name: str, port: int) -> list[str]:
    """What the kubelet runs in a server of that name, as if it listened on that port."""
    served = arm.Served(MODEL, ADAPTER, "1f2e3d4c", name)
    server = arm.server(load_spec({"metadata": {"name": "bot"}, "spec": SPEC}), served, Images("t", "r", "v"), Devices())
    python, *arguments, listens = server["startupProbe"]["exec"]["command"]
    assert (python, listens) == ("python3", "8000")
    return [sys.executable, *arguments, str(port)]


@contextmanager
def answering(status: int, body: Any) -> Iterator[tuple[int, list[tuple[str, Any]]]]:
    """A server that always says the same. (its port, the paths and documents that came)"""
    came: list[tuple[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            answer = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port, came
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body", "fails"),
    [
        (200, {"choices": [{"text": "2"}]}, ""),
        (200, {"choices": []}, "AssertionError"),
        (404, {"error": "no such model"}, "HTTPError: HTTP Error 404"),
        (500, {}, "HTTPError: HTTP Error 500"),
    ],
)
def test_vllm_is_ready_once_it_has_answered_as_this_very_model(status: int, body: Any, fails: str) -> None:
    name = "ft:llama:acme:it's $(here):1"
    with answering(status, body) as (port, came):
        done = subprocess.run(probe(name, port), capture_output=True, text=True, timeout=60, check=False)
    assert came == [("/v1/completions", {"model": name, "prompt": "1", "max_tokens": 1})]
    assert (done.returncode != 0, fails in done.stderr) == (bool(fails), True), done.stderr


def test_vllm_is_asked_through_no_proxy() -> None:
    """The user's `pods.env` may name one, for what is fetched."""
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy"), "http://127.0.0.1:1")
    with answering(200, {"choices": [{"text": "2"}]}) as (port, came):
        done = subprocess.run(
            probe("bot", port), capture_output=True, text=True, timeout=60, check=False, env={"PATH": os.environ["PATH"], **proxies}
        )
    assert (done.returncode, len(came)) == (0, 1), done.stderr


def test_vllm_that_does_not_listen_yet_is_not_ready() -> None:
    with answering(200, {}) as (port, _):
        pass
    done = subprocess.run(probe("bot", port), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "Connection refused" in done.stderr.splitlines()[-1]


SPEC = {
    "model": {"source": "image:///opt/models/m"},
    "data": {"train": {"source": "configmap://rows/train.jsonl"}},
    "method": {"type": "LoRA"},
    "serving": {"runtime": "vLLM"},
}
