"""The base model with solved training rows in its prompt: what is asked, what is said of it, and that no evaluation fails of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer import layout
from finetune_trainer.config import RunConfig
from finetune_trainer.data import solved
from finetune_trainer.data.formats import content_digest, convert
from finetune_trainer.data.reading import RawRow
from finetune_trainer.data.solved import Solved
from finetune_trainer.evaluate import ask, cli, client, custom, fewshot, rows
from finetune_trainer.evaluate.rows import TestRow
from finetune_trainer.exits import Interrupted, UserError
from transformers import AutoTokenizer

from tests.trainer import hosting
from tests.trainer.support import make_config

FEW = {"examples": 3, "rows": 5, "maxTokens": 512}
DATA = "1f2e3d4c"
CONTEXT = 2048  # of the tiny model


# ---- what is asked


def example(value: dict[str, Any], wanted: str) -> Solved:
    row = convert(RawRow("rows.jsonl", 1, value), wanted)
    return Solved(row.digest, row.messages, 10)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ASKED = [turn("user", "Q"), turn("assistant", "A"), turn("user", "How many?")]
# format → a solved row of it, and the conversation in which it stands before the question `How many?` of a row with the system turn `S`
FORMATS: dict[str, tuple[dict[str, Any], list[dict[str, str]]]] = {
    "Messages": ({"messages": ASKED[:2]}, [turn("system", "S"), *ASKED]),
    "Messages with the same system turn": ({"messages": [turn("system", "S"), *ASKED[:2]]}, [turn("system", "S"), *ASKED]),
    "Messages with another system turn": (
        {"messages": [turn("system", "T"), *ASKED[:2]]},
        [turn("system", "S"), turn("user", "T\n\nQ"), turn("assistant", "A"), turn("user", "How many?")],
    ),
    "Messages of several turns": (
        {"messages": [*ASKED[:2], turn("user", "And?"), turn("assistant", "B")]},
        [turn("system", "S"), *ASKED[:2], turn("user", "And?"), turn("assistant", "B"), ASKED[2]],
    ),
    "PromptCompletion": ({"prompt": "Q", "completion": "A"}, [turn("system", "S"), *ASKED]),
    "InstructionInputOutput": (
        {"instruction": "Do", "input": "it", "output": "A"},
        [turn("system", "S"), turn("user", "Do\n\nit"), turn("assistant", "A"), ASKED[2]],
    ),
    "InputOutput": ({"input": "Q", "output": "A"}, [turn("system", "S"), *ASKED]),
    "Preference, of which the preferred answer is shown": ({"prompt": "Q", "chosen": "A", "rejected": "B"}, [turn("system", "S"), *ASKED]),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_solved_row_of_any_format_stands_before_the_question(name: str) -> None:
    value, expected = FORMATS[name]
    row = TestRow("1", (turn("system", "S"), turn("user", "How many?")), "3", "{}")
    found = fewshot.prompted(row, [example(value, name.split()[0].rstrip(","))])
    assert list(found.messages) == expected
    assert (found.id, found.reference, found.schema) == ("1", "3", "{}")


def test_a_question_without_a_system_turn_gets_none() -> None:
    row = TestRow("1", (turn("user", "How many?"),), "3")
    given = [example({"system": "T", "input": "Q", "output": "A"}, "InputOutput"), example({"input": "Q2", "output": "A2"}, "InputOutput")]
    assert list(fewshot.prompted(row, given).messages) == [
        turn("user", "T\n\nQ"), turn("assistant", "A"), turn("user", "Q2"), turn("assistant", "A2"), turn("user", "How many?"),
    ]  # fmt: skip


# ---- a server of which is known what it answers


def solves(messages: list[dict[str, str]]) -> bool:
    return any(message["role"] == "assistant" for message in messages)


@dataclass
class Scripted:
    """Answers rightly where a question was solved before the one that is asked, else `?`."""

    url: str
    answers: dict[str, str]
    counts: bool = True
    broken: bool = False
    asked: list[list[dict[str, str]]] = field(default_factory=list)

    @property
    def prompted(self) -> list[list[dict[str, str]]]:
        """The questions that had others before them."""
        return [messages for messages in self.asked if solves(messages)]

    def reply(self, messages: list[dict[str, str]]) -> tuple[int, dict[str, Any]]:
        self.asked.append(messages)
        if solves(messages) and self.broken:
            return 503, {"error": {"message": "out of memory"}}
        answer = self.answers[messages[-1]["content"]] if solves(messages) else "?"
        usage = {"prompt_tokens": 10 * len(messages), "completion_tokens": 2} if self.counts else None
        return 200, {"choices": [{"message": {"content": answer}}], "usage": usage}


@contextmanager
def scripted(answers: dict[str, str], **more: Any) -> Iterator[Scripted]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._say(200, {"data": [{"id": "bot"}]})

        def do_POST(self) -> None:
            self._say(*found.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"]))

        def log_message(self, *_: Any) -> None:
            """Nothing."""

        def _say(self, status: int, document: dict[str, Any]) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Scripted(f"http://127.0.0.1:{server.server_port}/v1", answers, **more)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join(10)


Asks = Callable[..., dict[str, Any]]


@pytest.fixture
def evaluate(work: Path, tiny_model: Path, tmp_path: Path) -> Asks:
    """Score the base on the tiny test split by an endpoint; `before` has what is asked beside the score."""

    def scored(endpoint: str, *, few: dict[str, int] | None = FEW, name: str = "baseline", **overrides: Any) -> dict[str, Any]:
        before = {"reference": "base", "enough": None, "fewShot": few, **overrides.pop("before", {})}
        changes = {"evaluation__path": str(tmp_path / name), "evaluation__endpoint": endpoint, "evaluation__before": before, **overrides}
        return dict(cli.main(RunConfig.model_validate(make_config("evaluate", work, tiny_model, **changes))))

    return scored


@pytest.fixture
def answers(work: Path) -> dict[str, str]:
    """The reference by question."""
    return {row.messages[-1]["content"]: row.reference for row in rows.test_rows(work / "data" / DATA)}


def codes(told: dict[str, Any]) -> list[str]:
    return [item["code"] for item in told["advice"]]


def test_the_same_rows_are_scored_with_examples_and_without(evaluate: Asks, answers: dict[str, str], work: Path, tmp_path: Path) -> None:
    with scripted(answers) as server:
        told = evaluate(server.url, before={"minScore": 0.9})
    assert told["metrics"]["ExactMatch"]["score"] == 0, "the score is the one without"
    few = told["fewShot"]
    assert {name: few[name] for name in ("examples", "tokens")} == {"examples": 3, "tokens": 60}, "six turns of ten tokens more"
    assert few["score"] == {"score": 1.0, "low": 1.0, "high": 1.0, "n": 5}
    assert few["alone"] == {"score": 0.0, "low": 0.0, "high": 0.0, "n": 5}
    assert few["paired"] == {"metric": "ExactMatch", "difference": 1.0, "low": 1.0, "high": 1.0, "n": 5}
    assert told["answering"]["rows"] == 8, "speed is of the questions as users ask them"
    assert [len(messages) for messages in server.asked] == [1] * 8 + [7] * 5
    [shown] = {json.dumps(messages[:-1]) for messages in server.prompted}
    known = solved.read(work / "data" / DATA)
    assert known
    assert json.loads(shown) == [message for one in known[:3] for message in one.messages], "one prompt for all"
    assert not set(answers) & {message["content"] for message in json.loads(shown)}, "of no test row"
    assert [row.scores for row in rows_of(tmp_path / "baseline")] == [{"ExactMatch": 1.0}] * 5
    assert codes(told) == ["FewShotEnough", "TryWithoutTraining"]
    page = (tmp_path / "baseline" / "report.html").read_text()
    for words in ("with 3 examples", "With 3 solved examples of the training rows before each question the base model scores 100.0 % on 5"):
        assert words in page, words
    assert sorted(path.name for path in tmp_path.iterdir()) == ["baseline"], "the answers that were kept are gone"


def rows_of(folder: Path) -> list[rows.ScoredRow]:
    documents = [json.loads(line) for line in (folder / fewshot.ROWS).read_text().splitlines()]
    return [rows.ScoredRow(d["id"], d["answer"], d["scores"]) for d in documents]


def test_another_run_asks_the_same(evaluate: Asks, answers: dict[str, str]) -> None:
    seen = []
    for name in ("one", "two"):
        with scripted(answers) as server:
            evaluate(server.url, name=name)
        seen.append(sorted(map(json.dumps, server.prompted)))
    assert seen[0] == seen[1]
    assert len(seen[0]) == 5


def test_more_rows_and_examples_than_there_are(evaluate: Asks, answers: dict[str, str]) -> None:
    with scripted(answers) as server:
        few = evaluate(server.url, few={"examples": 16, "rows": 4096, "maxTokens": 100_000})["fewShot"]
    assert (few["score"]["n"], few["examples"]) == (8, 16)


def test_fewer_examples_where_no_more_fit(evaluate: Asks, answers: dict[str, str], work: Path) -> None:
    known = solved.read(work / "data" / DATA)
    assert known
    with scripted(answers) as server:
        few = evaluate(server.url, few={**FEW, "maxTokens": 10 + known[0].tokens + known[1].tokens})["fewShot"]
    assert few["examples"] == 2


NOT_TRIED: dict[str, tuple[dict[str, Any], str]] = {
    "it is good enough without": (
        {"before": {"enough": 0.0}},
        "the base model reaches evaluation.skipTrainingIfBaselineAtLeast without them",
    ),
    "what is live was tuned": ({"before": {"reference": "0a0b0c0d"}}, "revision 0a0b0c0d was tuned for these questions"),
    "there is no room": (
        {"few": {**FEW, "maxTokens": 19}},
        "no example fits into 19 tokens (training.maxSequenceLength, or the model's context less an answer) beside a question of 10",
    ),
    "the model has no room": (
        {"few": {**FEW, "maxTokens": 10**6}, "evaluation__maxNewTokens": CONTEXT - 30},
        "no example fits into 30 tokens",
    ),
}


@pytest.mark.parametrize(("changes", "why"), NOT_TRIED.values(), ids=NOT_TRIED)
def test_why_they_are_not_tried_is_said(changes: dict[str, Any], why: str, evaluate: Asks, answers: dict[str, str], tmp_path: Path) -> None:
    with scripted(answers) as server:
        told = evaluate(server.url, **changes)
    assert list(told["fewShot"]) == ["unmeasured"]
    assert why in told["fewShot"]["unmeasured"]
    assert not server.prompted
    assert not {"FewShotEnough", "FewShotTried"} & set(codes(told))
    assert "Examples in the prompt were not tried: " in (tmp_path / "baseline" / "report.html").read_text()


def test_a_loss_has_no_prompt(evaluate: Asks) -> None:
    told = evaluate("http://127.0.0.1:1/v1", evaluation__metrics=[{"type": "Loss"}])
    assert told["fewShot"] == {"unmeasured": "no metric of spec.evaluation asks for answers"}


def test_an_image_of_ones_own_is_not_run_again(evaluate: Asks, answers: dict[str, str], work: Path, tmp_path: Path) -> None:
    scores = [json.dumps({"id": row.id, "score": 0.5}) for row in rows.test_rows(work / "data" / DATA)]
    (tmp_path / "metric" / "out").mkdir(parents=True)
    (tmp_path / "metric" / custom.SCORES).write_text("\n".join(scores))
    metric = {"type": "Custom", "custom": {"folder": str(tmp_path / "metric")}}
    with scripted(answers) as server:
        told = evaluate(server.url, evaluation__metrics=[metric, {"type": "ExactMatch"}])
        second = evaluate(server.url, name="second", evaluation__metrics=[{"type": "ExactMatch"}, metric])
    assert told["fewShot"] == {"unmeasured": "an image of your own scores the answers, and has ended before these are asked for"}
    assert second["fewShot"]["score"]["score"] == 1, "what is gated alone counts"


def test_nothing_is_said_where_nobody_asks(evaluate: Asks, answers: dict[str, str]) -> None:
    with scripted(answers) as server:
        told = evaluate(server.url, few=None)
    assert "fewShot" not in told
    assert len(server.asked) == 8


def test_a_server_that_does_not_count_tokens(evaluate: Asks, answers: dict[str, str]) -> None:
    with scripted(answers, counts=False) as server:
        told = evaluate(server.url)
    assert "the model server does not count tokens" in told["fewShot"]["unmeasured"]


def test_an_evaluation_counts_although_the_server_breaks_of_longer_prompts(
    evaluate: Asks, answers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "RETRY_SECONDS", 0.0)
    with scripted(answers, broken=True) as server:
        told = evaluate(server.url)
    assert told["metrics"]["ExactMatch"]["n"] == 8
    assert "last: HTTP 503: out of memory" in told["fewShot"]["unmeasured"]


def prepared(folder: Path, test: list[dict[str, Any]], examples: list[dict[str, Any]]) -> None:
    """What prepare leaves, as far as it matters here."""
    with layout.transaction(folder, layout.DATA_MANIFEST) as data:
        for name, lines in ((rows.TEST, test), (solved.FILE, examples)):
            (data.folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(("said", "fits"), [("The tables.", 2), ("Other tables.", 1)])
def test_a_system_turn_that_all_have_takes_room_once(said: str, fits: int, evaluate: Asks, tmp_path: Path) -> None:
    test = [{"id": str(n), "messages": [turn("system", "The tables."), turn("user", f"Q{n}")], "reference": f"A{n}"} for n in range(4)]
    solved_rows = [
        {"id": f"s{n}", "messages": [turn("system", said), turn("user", f"S{n}"), turn("assistant", "A")], "tokens": 50, "system": 40}
        for n in range(3)
    ]
    prepared(tmp_path / "data", test, solved_rows)
    with scripted({f"Q{n}": f"A{n}" for n in range(4)}) as server:
        few = evaluate(server.url, few={**FEW, "examples": 2, "maxTokens": 20 + 50}, data__path=str(tmp_path / "data"))["fewShot"]
    assert few["examples"] == fits
    assert server.asked[-1][0] == turn("system", "The tables.")
    assert [message["role"] for message in server.asked[-1]] == ["system", *["user", "assistant"] * fits, "user"]


def test_data_of_an_older_image_have_no_examples(evaluate: Asks, answers: dict[str, str], work: Path, tmp_path: Path) -> None:
    with layout.transaction(tmp_path / "old", layout.DATA_MANIFEST) as old:
        (old.folder / rows.TEST).write_text((work / "data" / DATA / rows.TEST).read_text())
    with scripted(answers) as server:
        told = evaluate(server.url, data__path=str(tmp_path / "old"))
    assert told["fewShot"] == {"unmeasured": "an older version prepared the data, and kept no examples"}


def test_a_test_row_is_no_example_whatever_the_file_says(evaluate: Asks, answers: dict[str, str], work: Path, tmp_path: Path) -> None:
    sealed = rows.test_rows(work / "data" / DATA)
    lines = [{"id": row.id, "messages": [*row.messages, turn("assistant", row.reference)], "tokens": 5, "system": 0} for row in sealed]
    prepared(tmp_path / "leak", [json.loads(line) for line in (work / "data" / DATA / rows.TEST).read_text().splitlines()], lines)
    with scripted(answers) as server:
        told = evaluate(server.url, data__path=str(tmp_path / "leak"))
    assert told["fewShot"] == {"unmeasured": "no training row is a conversation that a question opens"}
    assert content_digest([*sealed[0].messages, turn("assistant", sealed[0].reference)]) == sealed[0].id


def test_an_interrupted_evaluation_goes_on_with_what_was_answered(
    evaluate: Asks, answers: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: Any) -> Any:
        raise Interrupted("Interrupted", "stopped by SIGTERM")

    with scripted(answers) as server:
        with monkeypatch.context() as patch:
            patch.setattr(cli, "_commit", interrupted)
            with pytest.raises(Interrupted):
                evaluate(server.url)
        assert len(server.asked) == 13
        told = evaluate(server.url)
        assert len(server.asked) == 13, "nothing is asked twice"
        assert told["fewShot"]["score"]["score"] == 1
        assert evaluate(server.url, few={**FEW, "examples": 1}) == told, "what counts is not made again, whatever is asked by now"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["baseline"]


def test_a_stop_is_a_stop_also_between_both_scores(evaluate: Asks, answers: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    answered = ask.answered

    def stopped(*given: Any, suffix: str = "", **more: Any) -> Any:
        if suffix:
            raise Interrupted("Interrupted", "stopped by SIGTERM")
        return answered(*given, **more)

    monkeypatch.setattr(ask, "answered", stopped)
    with scripted(answers) as server, pytest.raises(Interrupted):
        evaluate(server.url)


def test_the_evaluation_after_training_shows_it_beside_both(evaluate: Asks, answers: dict[str, str], tmp_path: Path) -> None:
    with scripted(answers) as server:
        evaluate(server.url)
        told = evaluate(
            server.url, name="tuned", evaluation__name="tuned", evaluation__before=None,
            evaluation__reference=str(tmp_path / "baseline"), evaluation__report={"reference": "base"},
        )  # fmt: skip
        assert len(server.prompted) == 5, "a tuned model is asked without"
    assert "fewShot" not in told
    page = (tmp_path / "tuned" / "report.html").read_text()
    names = [name for name in ("the base model", "with 3 examples", "tuned") if f">{name}</text>" in page]
    assert names == ["the base model", "with 3 examples", "tuned"]
    assert page.index(">the base model</text>") < page.index(">with 3 examples</text>") < page.index(">tuned</text>")


# ---- the real server


def test_the_tiny_model_is_asked_with_examples(host: hosting.Hosted, evaluate: Asks, work: Path, tiny_model: Path, tmp_path: Path) -> None:
    told = evaluate(
        host.url, few={"examples": 2, "rows": 6, "maxTokens": 512}, evaluation__metrics=[{"type": "TokenF1"}, {"type": "ExactMatch"}]
    )
    few = told["fewShot"]
    assert list(few) == ["examples", "tokens", "score", "alone", "paired"]
    assert (few["examples"], few["score"]["n"], few["alone"]["n"], few["paired"]["n"]) == (2, 6, 6, 6)
    assert few["paired"]["metric"] == "TokenF1"
    assert few["paired"]["difference"] == pytest.approx(few["score"]["score"] - few["alone"]["score"], abs=1e-5)
    answered = rows_of(tmp_path / "baseline")
    assert [set(row.scores) for row in answered] == [{"TokenF1"}] * 6
    known = solved.read(work / "data" / DATA)
    assert known
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    test = {row.id: row for row in rows.test_rows(work / "data" / DATA)}

    def count(row: TestRow) -> int:
        text = tokenizer.apply_chat_template(list(row.messages), tokenize=False, add_generation_prompt=True)
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    added = [count(fewshot.prompted(test[row.id], known[:2])) - count(test[row.id]) for row in answered]
    assert few["tokens"] == round(sum(added) / len(added))
    assert max(added) <= known[0].tokens + known[1].tokens, "what is taken for their length is enough"
    assert codes(told)[0] == "FewShotTried"
    assert host.loaded.max_model_len == CONTEXT


def test_a_server_that_refuses_some_of_the_longer_prompts_says_nothing_of_examples(
    evaluate: Asks, answers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with scripted(answers) as server:
        reply, longest = server.reply, sorted(answers)[0]

        def refuses(messages: list[dict[str, str]]) -> tuple[int, dict[str, Any]]:
            if solves(messages) and messages[-1]["content"] == longest:
                return 400, {"error": {"message": "maximum context length is 1024"}}
            return reply(messages)

        monkeypatch.setattr(server, "reply", refuses)
        told = evaluate(server.url, few={**FEW, "rows": 8})
    assert told["fewShot"] == {
        "unmeasured": "the server refused 1 of 8 questions with them, and answered these without: HTTP 400: maximum context length is 1024"
    }


def test_no_image_is_asked_where_the_server_refuses_every_row(
    work: Path, tiny_model: Path, answers: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = {"type": "Custom", "custom": {"folder": str(tmp_path / "metric")}}
    with scripted(answers) as server:
        monkeypatch.setattr(server, "reply", lambda messages: (400, {"error": {"message": "no system turns"}}))
        changes = {"evaluation__path": str(tmp_path / "e"), "evaluation__endpoint": server.url, "evaluation__metrics": [metric]}
        config = RunConfig.model_validate(make_config("evaluate", work, tiny_model, **changes))
        with pytest.raises(UserError, match="the server refused every row; the first: HTTP 400: no system turns"):
            ask.main(config)


def test_another_answer_to_a_test_question_is_no_example(evaluate: Asks, answers: dict[str, str], work: Path, tmp_path: Path) -> None:
    sealed = rows.test_rows(work / "data" / DATA)
    lines = [{"id": f"other-{row.id}", "messages": [*row.messages, turn("assistant", "so")], "tokens": 5, "system": 0} for row in sealed]
    prepared(tmp_path / "leak", [json.loads(line) for line in (work / "data" / DATA / rows.TEST).read_text().splitlines()], lines)
    with scripted(answers) as server:
        told = evaluate(server.url, data__path=str(tmp_path / "leak"))
    assert list(told["fewShot"]) == ["unmeasured"]
    assert not server.prompted


def test_a_metric_that_is_corrected_asks_for_no_answer_again(work: Path, tiny_model: Path, answers: dict[str, str], tmp_path: Path) -> None:
    metric = {"type": "Custom", "custom": {"folder": str(tmp_path / "metric")}}
    with scripted(answers) as server:
        for key in ("aaa", "bbb"):
            path = str(tmp_path / f"baseline-{key}")
            changes = {"evaluation__path": path, "evaluation__endpoint": server.url, "evaluation__metrics": [metric]}
            ask.main(RunConfig.model_validate(make_config("evaluate", work, tiny_model, **changes)))
    assert len(server.asked) == len(answers)
