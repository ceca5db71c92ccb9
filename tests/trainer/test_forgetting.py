"""The probe: what an untouched model and one that was ruined have forgotten, what is kept of it, and what keeps it from measuring."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer import exits, fetch, hardware, layout
from finetune_trainer.config import ForgettingConfig, RunConfig
from finetune_trainer.evaluate import cli, forgetting, general, probe, rows, worth
from finetune_trainer.evaluate.loss import batches
from finetune_trainer.evaluate.rows import ScoredRow
from finetune_trainer.evaluate.statistics import ratio
from finetune_trainer.evaluate.throughput import Answering
from finetune_trainer.serve.loading import adapt, load
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.trainer import evaluations, lives
from tests.trainer.support import make_config, running

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks transformers for it


@pytest.fixture(scope="module")
def untouched(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter as it is before any training."""
    folder = tmp_path_factory.mktemp("untouched")
    network = AutoModelForCausalLM.from_pretrained(work / "models" / "tiny", dtype=torch.float32)
    get_peft_model(network, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def knowing(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model after it has learnt the general texts, as a model of a work volume."""
    learnt = tmp_path_factory.mktemp("knowing")
    tokenizer: Any = AutoTokenizer.from_pretrained(work / "models" / "tiny")
    network: Any = AutoModelForCausalLM.from_pretrained(work / "models" / "tiny", dtype=torch.float32)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.005)
    for text in general.encoded(tokenizer, 1024) * 6:
        ids = torch.tensor([text.ids])
        network(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    network.save_pretrained(learnt)
    tokenizer.save_pretrained(learnt)
    fetch.main(RunConfig.model_validate(make_config("fetch", learnt / "work", learnt)))
    return learnt / "work" / "models" / "tiny"


def config(work: Path, model: Path, adapter: Path | None, path: Path, **overrides: Any) -> RunConfig:
    return RunConfig.model_validate(document(work, model, adapter, path, **overrides))


def document(work: Path, model: Path, adapter: Path | None, path: Path, **overrides: Any) -> dict[str, Any]:
    asked = {"base": str(work / "models" / "tiny"), "path": str(path)}
    own = {"evaluation__name": "tuned", "evaluation__adapterPath": adapter and str(adapter), "evaluation__forgetting": asked}
    return make_config("evaluate", work, model, **{**own, **overrides})


# ---- what is found


def test_an_untouched_adapter_has_forgotten_nothing(work: Path, untouched: Path) -> None:
    found: Any = probe.measure(work / "models" / "tiny", work / "models" / "tiny", untouched, 95)
    assert [found[figure] for figure in ("percent", "low", "high", "kl", "klP95", "agreement")] == [0, 0, 0, 0, 0, 1]
    assert found["base"] == found["tuned"]
    assert found["base"]["low"] < found["base"]["perplexity"] < found["base"]["high"]
    assert (found["texts"], found["prompts"]) == (len(general.documents()), general.digest())
    assert {kind: figures["texts"] for kind, figures in found["kinds"].items()} == Counter(one["kind"] for one in general.documents())


def test_what_quantisation_takes_is_forgotten_where_the_server_quantises(work: Path, untouched: Path, tmp_path: Path) -> None:
    base, adapter = work / "models" / "tiny", tmp_path / "adapter"
    shutil.copytree(untouched, adapter)
    (adapter / layout.ARTIFACT_MANIFEST).write_text(json.dumps({"method": {"type": "QLoRA", "quantization": "NF4"}}))
    by_us, by_vllm = (probe.measure(base, base, adapter, 95, quantized=quantized) for quantized in (True, False))
    assert (by_us["kl"] > 0, by_vllm["kl"]) == (True, 0)  # type: ignore[operator]


def test_a_model_that_was_tuned_into_nonsense_is_seen_to_have_forgotten(work: Path, knowing: Path, tmp_path: Path) -> None:
    settings = make_config("train", work, knowing, model__path=str(knowing), training__learningRate=3.0)
    found: Any = probe.measure(knowing, knowing, lives.train(settings, tmp_path).artifact, 95)
    assert 20 < found["low"] < found["percent"] < found["high"]
    assert found["kl"] > 0.5
    assert found["agreement"] < 0.8  # how far such a run goes astray is the processor's affair too
    json.dumps(found, allow_nan=False)


def test_the_folder_of_a_whole_model_is_read_after_the_base_model(work: Path, tmp_path: Path) -> None:
    base = work / "models" / "tiny"
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        network.model.norm.weight.mul_(0.5)
    network.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path)
    found: Any = probe.measure(base, tmp_path, None, 95)
    assert found["kl"] > 0
    assert found["agreement"] == 1, "half the logits have the same order"


def test_logits_that_are_no_numbers_are_told(work: Path, untouched: Path) -> None:
    base = load(work / "models" / "tiny", None, dtype=torch.float32)
    texts = general.encoded(base.tokenizer, 1024)[:3]
    said = forgetting.remember(base, texts)
    tuned = adapt(base, untouched)
    with torch.no_grad():
        tuned.model.model.norm.weight.fill_(math.nan)
    with pytest.raises(exits.UserError, match="no number"):
        forgetting.summary(forgetting.compare(tuned, texts, said), 95)


def compared(texts: int) -> list[forgetting.Compared]:
    """The first texts, of which the tuned model knows nothing any more."""
    named = [general.Text(one["id"], one["kind"], (1, 2, 3), 1) for one in general.documents()[:texts]]
    return [forgetting.Compared(text, 2.0, 2000.0, (999.0, 999.0), 0) for text in named]


def test_of_too_few_texts_nothing_is_said_and_of_some_not_what_is_said_of_all() -> None:
    with pytest.raises(exits.UserError, match="19 general texts were read"):
        forgetting.summary(compared(19), 95)
    some, every = (forgetting.summary(compared(texts), 95)["prompts"] for texts in (20, 40))
    assert some != every == general.digest()


def test_a_rise_and_a_perplexity_beyond_all_bounds_are_cut(work: Path) -> None:
    found: Any = forgetting.summary(compared(forgetting.LEAST_TEXTS), 95)
    assert (found["percent"], found["tuned"]["perplexity"]) == (forgetting.MOST, forgetting.MOST)


def test_no_text_is_begun_once_the_time_is_over(work: Path, untouched: Path) -> None:
    base = load(work / "models" / "tiny", None, dtype=torch.float32)
    texts = general.encoded(base.tokenizer, 1024)
    ticks = count(0, 20)
    said = forgetting.remember(base, texts, lambda: float(next(ticks)))
    first, second, *_ = batches(range(len(texts)), [len(text.ids) for text in texts], forgetting.BATCH_TOKENS)
    assert len(said) == len(first) + len(second)
    assert [one.text for one in forgetting.compare(adapt(base, untouched), texts, said)] == texts[: len(said)]
    assert len(forgetting.remember(base, texts, lambda: 0.0)) == len(texts)


def test_an_adapter_upon_a_loaded_model_is_what_a_server_loads(work: Path, tiny_model: Path, tmp_path: Path) -> None:
    for method in ({"type": "LoRA", "lora": {"rank": 4, "alpha": 8}}, {"type": "PrefixTuning", "prompt": {"virtualTokens": 5}}):
        settings = make_config("train", work, tiny_model, method={**method, "objective": "SFT"}, training__learningRate=0.02)
        artifact = lives.train(settings, tmp_path / method["type"]).artifact
        served = load(work / "models" / "tiny", artifact, dtype=torch.float32)
        found = adapt(load(work / "models" / "tiny", None, dtype=torch.float32), artifact)
        assert found.max_model_len == served.max_model_len
        for prompt in lives.PROMPTS:
            assert torch.equal(lives.served_logits(found, prompt), lives.served_logits(served, prompt))


# ---- the texts


def test_texts_are_many_short_and_each_is_named_once() -> None:
    found = general.documents()
    assert len({one["id"] for one in found}) == len(found) >= 40
    assert {one["kind"] for one in found} == {"prose", "languages", "code", "questions"}
    assert len({one["language"] for one in found}) >= 10
    assert all(20 < len(one.get("text") or one["answer"]) < 500 for one in found)
    assert {one["kind"] for one in found[:6]} == {one["kind"] for one in found}, "where time is short, each kind is among the first"


def test_of_a_question_the_answer_counts_and_of_a_text_all_but_the_first_token(work: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(work / "models" / "tiny")
    texts = {text.name: text for text in general.encoded(tokenizer, 1024)}
    for one in general.documents():
        counted = tokenizer.decode(texts[one["id"]].ids[texts[one["id"]].first :])
        assert counted == (one["text"].encode()[1:].decode(errors="replace") if "text" in one else f"{one['answer']}<|im_end|>")
    assert {text.kind for text in general.encoded(tokenizer, 100)} < {text.kind for text in texts.values()}, "what does not fit is left out"


# ---- what is kept


def test_the_evaluation_tells_what_the_probe_found(work: Path, tiny_model: Path, untouched: Path, tmp_path: Path) -> None:
    asked = document(
        work, tiny_model, untouched, tmp_path / "forgetting", evaluation__path=str(tmp_path / "tuned"),
        evaluation__metrics=[{"type": "Loss"}], evaluation__report={"reference": "base", "gate": {"maxForgettingPercent": 5}},
    )  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(asked))
    with running(tmp_path / "probe-pod", ["probe", "--config", str(tmp_path / "run.json")]) as stage:
        probed = stage.ends(0).message
    assert (probed["stage"], probed["forgetting"]["percent"]) == ("probe", 0)
    with running(tmp_path / "evaluate-pod", ["evaluate", "--config", str(tmp_path / "run.json")]) as stage:
        found = stage.ends(0).message["forgetting"]
    assert found == {name: value for name, value in probed["forgetting"].items() if name != "kinds"}
    page = (tmp_path / "tuned" / "report.html").read_text()
    assert "General text, before and after" in page
    assert "The gate asks that the lower end of the rise of all texts is not above 5 %." in page


SPEED = Answering(rows=8, seconds=4.5, input_tokens=700, output_tokens=90, concurrency=3)
FAR = {
    "kl": 0.02, "klP99": 0.1, "klMax": 0.5, "differs": 0.01, "tokens": 200, "rows": 8, "trained": "LoRA beside the base", "served": "vLLM",
    "merged": True,
}  # fmt: skip


def commit(folder: Path, result: dict[str, Any]) -> None:
    with layout.transaction(folder) as made:
        layout.write_json(made.folder / "result.json", result)


def test_an_evaluation_that_was_finished_before_tells_everywhere_what_was_measured_since(
    work: Path, tiny_model: Path, untouched: Path, tmp_path: Path
) -> None:
    path, artifact = tmp_path / "tuned", tmp_path / "artifact"
    with layout.transaction(artifact, layout.ARTIFACT_MANIFEST) as trained:
        trained.facts.update(evaluations.made())
    asked = config(
        work, tiny_model, untouched, tmp_path / "forgetting", evaluation__path=str(path), evaluation__metrics=[{"type": "ExactMatch"}],
        evaluation__report={"artifact": str(artifact), "economics": {"pods": 1, "mostPods": 1, "podHour": 2.5}},
        evaluation__fidelity={"path": str(tmp_path / "fidelity")},
    )  # fmt: skip
    answered = [ScoredRow(row.id, row.reference, {"ExactMatch": 1.0}) for row in rows.test_rows(work / "data" / "1f2e3d4c")]
    with layout.transaction(path) as made:
        rows.write(made.folder / rows.ROWS, answered)
        known = {"stage": "evaluate", "forgetting": {"unmeasured": "no room"}, "answering": SPEED.told()}
        layout.write_json(made.folder / "result.json", known)
    found = evaluations.forgetting(26.2)
    commit(tmp_path / "forgetting", found)
    commit(tmp_path / "fidelity", FAR)

    told: Any = cli.main(asked)
    assert (told["fidelity"], told["answering"]) == (FAR, SPEED.told())
    assert told["forgetting"] == {name: value for name, value in found.items() if name != "kinds"}
    assert told["metrics"]["ExactMatch"]["score"] == 1
    assert any("its perplexity rose by 26.2 %" in item["message"] for item in told["advice"])
    assert json.loads((path / "result.json").read_text()) == told
    assert "perplexity rose by 26.2 %" in (path / "report.html").read_text()
    assert "| all texts | 40 |" in (path / "README.md").read_text()
    for page in ("report.html", "README.md"):
        assert (
            "As trained: LoRA beside the base. As served (where nothing serves yet, by the server of an evaluation): vLLM."
            in (path / page).read_text()
        )
    assert worth.speed(SPEED) in (path / "report.html").read_text()
    assert rows.read(path) == answered
    layout.verify(path)
    before = (path / "report.html").stat().st_ino
    assert cli.main(asked) == told
    assert (path / "report.html").stat().st_ino == before, "what is known is not written again"
    commit(tmp_path / "fidelity", {**FAR, "kl": 0.03})
    assert cli.main(asked) == {**told, "fidelity": {**FAR, "kl": 0.03}}, "how it is served alone was measured anew"
    assert "0.0300" in (path / "report.html").read_text()


def test_the_same_models_are_measured_once(
    work: Path, tiny_model: Path, untouched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(probe, "measure", lambda *asked, **_: calls.append(asked) or {"percent": len(calls)})
    asked = config(work, tiny_model, untouched, tmp_path / "found")
    first, again = probe.main(asked), probe.main(asked)
    assert first == again == {"stage": "probe", "forgetting": {"percent": 1}}
    assert probe.main(config(work, tiny_model, tmp_path / "another", tmp_path / "found"))["forgetting"] == {"percent": 2}
    monkeypatch.setattr(general, "digest", lambda: "sha256:other texts")
    assert probe.main(config(work, tiny_model, tmp_path / "another", tmp_path / "found"))["forgetting"] == {"percent": 3}


def test_what_keeps_it_from_measuring_is_the_result_and_is_tried_again(
    work: Path, tiny_model: Path, untouched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = config(work, tiny_model, untouched, tmp_path / "found")
    with monkeypatch.context() as patch:
        patch.setattr(hardware, "memory", lambda: (2**30, "the container", "Raise compute.memory."))
        found = probe.main(asked)["forgetting"]
    assert found == {"unmeasured": "the model takes about 1.2 GiB, and the container has 1.0 GiB. Raise compute.memory."}
    layout.verify(tmp_path / "found")
    assert "unmeasured" not in probe.main(asked)["forgetting"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "CUDA out of memory"),
        (exits.UserError("AdapterNotServable", "it has no weights", "Train it again."), "it has no weights. Train it again."),
        (RuntimeError("an operator that is not there"), "an operator that is not there"),
    ],
)
def test_an_evaluation_does_not_fail_of_the_probe(
    error: Exception, words: str, work: Path, tiny_model: Path, untouched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(probe, "measure", fails)
    found: Any = probe.main(config(work, tiny_model, untouched, tmp_path / "found"))["forgetting"]
    assert words in found["unmeasured"]


def test_a_probe_that_hangs_is_ended_and_one_that_is_done_is_not() -> None:
    code = "import time; from finetune_trainer.evaluate.probe import bounded\nwith bounded({}): time.sleep({})\ntime.sleep({})"
    hangs = subprocess.run([sys.executable, "-c", code.format(0.1, 60, 0)], capture_output=True, text=True, check=False)
    assert (hangs.returncode, "File" in hangs.stderr) == (1, True)
    assert subprocess.run([sys.executable, "-c", code.format(0.5, 0, 1)], check=False).returncode == 0


def test_a_volume_that_fails_fails_the_probe(work: Path, tiny_model: Path, untouched: Path, tmp_path: Path) -> None:
    asked = document(work, tiny_model, untouched, tmp_path / "found", evaluation__forgetting={"base": "/not/there", "path": str(tmp_path)})
    with pytest.raises(exits.Infrastructure, match="does not exist"):
        probe.main(RunConfig.model_validate(asked))


def test_a_probe_that_left_nothing_is_told_as_such(tmp_path: Path) -> None:
    found: Any = probe.told(ForgettingConfig(base=tmp_path, path=tmp_path / "nothing"))
    assert found["unmeasured"].startswith("the probe left no result")


def test_a_probe_that_does_not_run_any_more_is_told_with_its_reason_but_for_what_it_found_before(tmp_path: Path) -> None:
    asked = ForgettingConfig(base=tmp_path, path=tmp_path / "found", skipped="the probe failed: no memory")
    assert probe.told(asked) == {"unmeasured": "the probe failed: no memory"}
    commit(tmp_path / "found", {"percent": 1})
    assert probe.told(asked) == {"percent": 1}


# ---- what it stands on


def test_memory_is_what_the_limit_leaves_and_no_more_than_there_is(tmp_path: Path) -> None:
    meminfo, two, one = tmp_path / "meminfo", tmp_path / "max", tmp_path / "limit"
    meminfo.write_text("MemTotal:  100 kB\nMemAvailable:  50 kB\n")
    assert hardware.cpu_memory((two, one), tmp_path / "nothing") is None
    assert hardware.cpu_memory((two, one), meminfo) == 50 * 1024
    two.write_text("max\n")
    assert hardware.cpu_memory((two, one), meminfo) == 50 * 1024
    two.write_text("4096\n")
    assert hardware.cpu_memory((two, one), meminfo) == 4096
    one.write_text("9223372036854771712\n")
    assert hardware.cpu_memory((one,), meminfo) == 50 * 1024


def test_of_a_folder_those_weights_count_that_are_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"dtype": "float32"}')
    for name, size in (("model-1.safetensors", 40), ("model-2.safetensors", 20), ("consolidated.safetensors", 60)):
        (tmp_path / name).write_bytes(b"w" * size)
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert probe.weights(tmp_path) == 30
    (tmp_path / "model.safetensors").write_bytes(b"w" * 80)
    assert probe.weights(tmp_path) == 40


def test_texts_are_grouped_in_any_order_within_the_tokens() -> None:
    assert batches(range(5), [3, 3, 9, 1, 30], 10) == [[0, 1], [2], [3], [4]]
    assert batches([3, 0, 1], [3, 3, 9, 1, 30], 10) == [[3, 0, 1]]


def test_a_ratio_is_of_sums_and_its_interval_of_rows() -> None:
    assert ratio([], [], 95) is None
    same = ratio([2.0, 6.0], [1.0, 3.0], 95)
    assert same is not None
    assert (same.mean, same.low, same.high, same.n) == (2.0, 2.0, 2.0, 2)
    found = ratio([1.0, 0.0], [1.0, 3.0], 95)
    assert found is not None
    assert (found.mean, found.low, found.high) == (0.25, 0.0, 1.0)
