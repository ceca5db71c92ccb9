"""Served against trained: nothing between the same network twice, else what plain torch says, and what keeps it from being measured."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer import card, exits, fetch, hardware, layout
from finetune_trainer.config import FidelityConfig, GateConfig, MethodConfig, RunConfig, TrainingConfig
from finetune_trainer.evaluate import faithful, fidelity, probe, report
from finetune_trainer.evaluate.fidelity import Answer
from finetune_trainer.evaluate.rows import TestRow, test_rows
from finetune_trainer.serve import loading
from finetune_trainer.train import artifact, remainder
from finetune_trainer.train.optimizer import Tensors
from peft import PeftModel
from safetensors import SafetensorError
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.trainer import evaluations, lives
from tests.trainer.support import make_config, running
from tests.trainer.test_methods import configured

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks transformers for it
NAMES = ("LoRA", "Full", "QLoRA NF4", "prompt tuning", "prefix tuning")
Trainings = Callable[[str], lives.Trained]


@pytest.fixture(scope="module")
def trained(work: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainings:
    """Finished runs by method, each made once."""
    made: dict[str, lives.Trained] = {}

    def run(name: str) -> lives.Trained:
        if name not in made:
            made[name] = lives.train(configured(work, tiny_model, name), tmp_path_factory.mktemp("run"))
        return made[name]

    return run


@pytest.fixture(scope="module")
def narrow(work: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensors]:
    """The artifact of all weights of a model that is stored in bfloat16, and the float32 weights that trained."""
    stored = tmp_path_factory.mktemp("narrow")
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).save_pretrained(stored)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(stored)
    fetch.main(RunConfig.model_validate(make_config("fetch", stored / "work", stored)))
    kept: Tensors = {}
    with pytest.MonkeyPatch.context() as patch:
        save = artifact.save
        patch.setattr(artifact, "save", lambda attempt, model, weights, *rest: kept.update(weights) or save(attempt, model, weights, *rest))
        base = stored / "work" / "models" / "tiny"
        found = lives.train(configured(work, tiny_model, "Full", model__path=str(base)), tmp_path_factory.mktemp("run"))
    return found.artifact, kept


def document(work: Path, model: Path, made: Path, path: Path, **overrides: Any) -> dict[str, Any]:
    """The configuration of the tuned model's evaluation."""
    whole = (made / "config.json").exists()
    own = {
        "evaluation__name": "tuned", "evaluation__fidelity": {"path": str(path)},
        "evaluation__forgetting": {"base": str(work / "models" / "tiny"), "path": str(path.with_name("forgetting"))},
        **({"model__path": str(made)} if whole else {"evaluation__adapterPath": str(made)}),
    }  # fmt: skip
    return make_config("evaluate", work, model, **{**own, **overrides})


def measured(work: Path, made: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, *, merged: bool = True) -> dict[str, Any]:
    """The figures where the server computes in `dtype`."""
    monkeypatch.setattr(loading, "serving_dtype", lambda device: dtype)
    config = RunConfig.model_validate(document(work, work, made, made / "unused"))
    assert config.data is not None
    assert config.evaluation is not None
    asked = FidelityConfig(path=made, merged=merged)
    return probe.measure_fidelity(config.model, config.evaluation.adapter_path, config.data.path, asked)


@torch.inference_mode()
def plain(work: Path, one: Any, other: Any) -> dict[str, float]:
    """The same figures by definition, of two models that take ids alone."""
    tokenizer: Any = AutoTokenizer.from_pretrained(work / "models" / "tiny")
    divergence, differs = [], []
    for row in test_rows(work / "data" / "1f2e3d4c"):
        asked = tokenizer.apply_chat_template(list(row.messages), add_generation_prompt=True, tokenize=False)
        first = len(tokenizer(asked)["input_ids"])
        ids = tokenizer(f"{asked}{row.reference}<|im_end|>")["input_ids"]
        logits = [model(input_ids=torch.tensor([ids])).logits[0].double()[first - 1 : -1] for model in (one, other)]
        before, after = (values.log_softmax(-1) for values in logits)
        divergence.append(functional.kl_div(after, before, reduction="none", log_target=True).sum(-1))
        differs.append(before.argmax(-1) != after.argmax(-1))
    every = torch.cat(divergence)
    return {
        "kl": float(every.mean()), "klP99": float(every.quantile(0.99)), "klMax": float(every.max()),
        "differs": float(torch.cat(differs).double().mean()), "tokens": len(every),
    }  # fmt: skip


def same(found: dict[str, Any], expected: dict[str, float]) -> bool:
    return all(found[name] == pytest.approx(value, rel=1e-3, abs=2e-9) for name, value in expected.items())


# ---- what is found


@pytest.mark.parametrize("name", NAMES)
def test_between_what_was_trained_and_the_same_served_in_float32_there_is_nothing(
    name: str, work: Path, trained: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measured(work, trained(name).artifact, torch.float32, monkeypatch)
    assert [found[figure] for figure in ("kl", "klP99", "klMax", "differs")] == [0, 0, 0, 0]
    assert found["rows"] == len(test_rows(work / "data" / "1f2e3d4c"))
    assert faithful.sentence(found).startswith("What is served is what was trained:")


@pytest.mark.parametrize("name", NAMES)
def test_rounding_for_the_server_is_seen_and_is_small(name: str, work: Path, trained: Trainings, monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(work, trained(name).artifact, torch.bfloat16, monkeypatch)
    assert 0 < found["kl"] <= found["klP99"] <= found["klMax"] < 1e-4
    assert found["served"].endswith("bfloat16")


@pytest.mark.parametrize("name", ["LoRA", "QLoRA NF4"])
def test_upon_weights_that_are_not_quantised_it_is_what_plain_torch_says_of_the_model_that_trained(
    name: str, work: Path, trained: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(name)
    run.run.model.eval()
    base = AutoModelForCausalLM.from_pretrained(work / "models" / "tiny", dtype=torch.float32)
    expected = plain(work, run.run.model, PeftModel.from_pretrained(base, str(run.artifact)).eval())
    found = measured(work, run.artifact, torch.float32, monkeypatch, merged=False)
    assert same(found, expected)
    assert (expected["kl"] > 1e-5) == (name == "QLoRA NF4"), "of LoRA nothing is quantised"
    assert found["served"] == "the adapter beside the base as it was, all in float32"


@pytest.mark.parametrize(("stored", "expected"), [("float16", "float16"), ("bfloat16", "bfloat16"), ("float32", "bfloat16")])
def test_vllm_computes_in_the_16_bits_that_the_base_is_stored_in(
    stored: str, expected: str, tiny_model: Path, trained: Trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "serving_dtype", lambda device: torch.bfloat16)
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=getattr(torch, stored)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    for adapter in (trained("LoRA").artifact, None):
        beside, merged = (fidelity.as_served(tmp_path, adapter, merged=merged) for merged in (False, True))
        found = {name: {str(value.dtype) for value in loaded.model.parameters()} for name, loaded in (("vLLM", beside), ("ours", merged))}
        assert found == {"vLLM": {f"torch.{expected}"}, "ours": {"torch.bfloat16"}}


def test_what_rounding_took_of_all_weights_is_measured(work: Path, narrow: tuple[Path, Tensors], monkeypatch: pytest.MonkeyPatch) -> None:
    made, weights = narrow
    masters = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)
    served = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32).eval()
    masters.load_state_dict(weights, strict=False)
    found, expected = measured(work, made, torch.float32, monkeypatch), plain(work, masters.eval(), served)
    assert expected["kl"] > 1e-8
    assert all(found[name] == pytest.approx(value, rel=0.02) for name, value in expected.items())
    assert (found["trained"], found["served"]) == ("all weights in float32, read in float32", "all weights in float32")


def test_weights_are_had_again_as_they_trained_to_twice_the_bits_and_without_what_was_kept_they_are_not(
    narrow: tuple[Path, Tensors], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, weights = narrow
    network = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)
    rounded = {name: value.clone() for name, value in network.named_parameters()}
    remainder.add(network, made)
    for name, value in network.requires_grad_(False).named_parameters():
        was = weights[name].abs().clamp(min=1e-30)
        assert float(((value - weights[name]).abs() / was).max()) <= 2**-16, name
    assert any(not torch.equal(value, rounded[name]) for name, value in network.named_parameters())
    monkeypatch.setattr(remainder, "folder", lambda artifact: artifact / "nothing")
    with pytest.raises(exits.UserError, match="what rounding to bfloat16 took of the weights is not kept any more"):
        remainder.add(network, made)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-4, 1e-6])
def test_of_small_weights_too_what_rounding_took_is_kept(dtype: torch.dtype, scale: float, tmp_path: Path) -> None:
    network, weights = torch.nn.Linear(64, 64, bias=False), torch.randn(64, 64, generator=torch.Generator().manual_seed(17)) * scale
    made = tmp_path / "artifact"
    made.mkdir()
    (made / "config.json").write_text(json.dumps({"dtype": str(dtype).removeprefix("torch.")}))
    remainder.save({"weight": weights}, made, dtype)
    rounded = weights.to(dtype).float()
    network.weight.data.copy_(rounded)
    remainder.add(network, made)
    taken = (weights - rounded).abs()
    assert float(taken.max()) > 0
    assert bool(((network.weight - weights).abs() <= 2**-8 * taken + 2**-23 * weights.abs()).all())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device")])
def test_a_training_does_not_fail_of_what_rounding_took(
    error: Exception, narrow: tuple[Path, Tensors], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made, weights = narrow
    network = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)

    def full(*_: object) -> None:
        assert (tmp_path / "artifact" / layout.COMMIT).exists(), "the artifact is there before"
        raise error

    monkeypatch.setattr(remainder, "save_file", full)
    saved = artifact.save(tmp_path, network, weights, evaluations.made(), made)
    assert layout.verify(tmp_path / "artifact", layout.ARTIFACT_MANIFEST)["digest"] == saved["digest"]
    assert not (tmp_path / "checkpoints" / "remainder").exists()
    assert "what rounding took of the weights is not kept" in capsys.readouterr().out


def test_of_weights_that_are_kept_whole_nothing_is_kept_beside(trained: Trainings) -> None:
    assert not remainder.folder(trained("Full").artifact).exists()


def logits(*shares: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(shares).log()


def test_figures_are_those_of_the_definition() -> None:
    one, other = Answer((1, 2), 1), Answer((3, 4, 5), 2)
    before = [(one, logits((0.5, 0.25, 0.25))), (other, logits((0.5, 0.25, 0.25), (0.8, 0.1, 0.1)))]
    after = {one: logits((0.5, 0.25, 0.25)), other: logits((0.25, 0.5, 0.25), (0.8, 0.1, 0.1))}
    found = fidelity.summary(fidelity.compare(after.__getitem__, before))
    divergence = 0.25 * math.log(2)
    assert found["kl"] == pytest.approx(divergence / 3, abs=1e-7)
    assert found["klMax"] == pytest.approx(divergence, abs=1e-7)
    assert found["klP99"] == pytest.approx(0.98 * divergence, abs=1e-7)
    assert (found["differs"], found["tokens"], found["rows"]) == (round(1 / 3, 9), 3, 2)


def test_more_tokens_than_are_compared_at_once_are_all_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(40, 7, generator=torch.Generator().manual_seed(17))
    answer = Answer(tuple(range(41)), 40)
    whole = fidelity.compare(lambda _: 2 * values, [(answer, values)])
    monkeypatch.setattr(fidelity, "SLICE", 1000)
    assert torch.equal(whole[0], fidelity.compare(lambda _: 2 * values, [(answer, values)])[0])
    assert whole[0].shape == (40, 2)


def test_nothing_is_said_of_nothing_and_of_what_is_no_number() -> None:
    with pytest.raises(exits.UserError, match="no answer of the test split fits"):
        fidelity.summary([])
    with pytest.raises(exits.UserError, match="no number"):
        fidelity.summary([torch.tensor([[math.nan, 0.0]])])


# ---- what is read


def test_the_beginnings_of_answers_that_fit_are_read(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(work / "models" / "tiny")
    test = test_rows(work / "data" / "1f2e3d4c")
    every = list(fidelity.answers(tokenizer, test, 1024))
    assert [tokenizer.decode(one.ids[-one.tokens :]) for one in every] == [f"{row.reference}<|im_end|>" for row in test]
    monkeypatch.setattr(fidelity, "ROW_TOKENS", 3)
    cut = list(fidelity.answers(tokenizer, test, 1024))
    assert [(one.ids, one.tokens) for one in cut] == [(one.ids[: len(one.ids) - one.tokens + 3], 3) for one in every]
    long = TestRow("long", test[0].messages, "so " * 500)
    assert list(fidelity.answers(tokenizer, [long, test[0]], 200)) == cut[:1], "what does not fit is left out"


FOUR = [Answer((0, 1, 2, 3, n), 4) for n in range(5)]


def test_time_tokens_and_memory_bound_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(answer: Answer) -> torch.Tensor:
        return torch.arange(answer.tokens * 8.0).reshape(answer.tokens, 8)

    for least, seconds, expected in ((8, 20, 2), (9, 20, 3), (20, 20, 5), (20, 400, 2)):
        monkeypatch.setattr(fidelity, "LEAST_TOKENS", least)
        ticks = count(0, seconds)
        assert len(fidelity.remember(read, FOUR, lambda ticks=ticks: float(next(ticks)))) == expected, (least, seconds)  # type: ignore[misc]
    assert fidelity.remember(read, FOUR, lambda: 0.0) == [(answer, pytest.approx(read(answer))) for answer in FOUR]
    monkeypatch.setattr(fidelity, "MOST_TOKENS", 7)
    kept = fidelity.remember(read, FOUR)
    assert [(answer.ids, answer.tokens, len(known)) for answer, known in kept] == [((0, 1, 2, 3, 0), 4, 4), ((0, 1, 2, 3), 3, 3)]
    assert torch.equal(kept[1][1], read(FOUR[1])[:3])
    monkeypatch.setattr(fidelity, "KEPT_BYTES", 2 * 8 * 4)
    assert [len(known) for _, known in fidelity.remember(read, FOUR)] == [2]
    monkeypatch.setattr(fidelity, "KEPT_BYTES", 1)
    assert [len(known) for _, known in fidelity.remember(read, FOUR)] == [1], "a token of the largest vocabulary is read all the same"


def test_of_fewer_tokens_than_a_mean_needs_nothing_is_said(probed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    one = [(Answer(tuple(range(100)), 99), torch.zeros(99, 2))]
    with pytest.raises(exits.UserError, match="have 99 tokens, and a mean of fewer than 100 says little"):
        fidelity.enough(one)
    enough = [*one, (Answer((1, 2), 1), torch.zeros(1, 2))]
    assert fidelity.enough(enough) is enough
    monkeypatch.setattr(fidelity, "LEAST_TOKENS", 10**6)
    found = probed()["unmeasured"]
    assert found.endswith("a mean of fewer than 1000000 says little. Give the test split more rows; a slow machine reads for 600 s.")


# ---- what is told


def test_the_evaluation_and_its_page_tell_what_the_probe_found(work: Path, tiny_model: Path, trained: Trainings, tmp_path: Path) -> None:
    made = trained("QLoRA NF4").artifact
    asked = document(
        work, tiny_model, made, tmp_path / "fidelity", evaluation__path=str(tmp_path / "tuned"), evaluation__metrics=[{"type": "Loss"}],
        evaluation__report={"reference": "base", "artifact": str(made), "gate": {"maxServingDivergence": 0.005}},
        evaluation__fidelity={"path": str(tmp_path / "fidelity"), "merged": False},
    )  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(asked))
    with running(tmp_path / "probe-pod", ["probe", "--config", str(tmp_path / "run.json")]) as stage:
        probed = stage.ends(0).message["fidelity"]
    assert 1e-5 < probed["kl"] < 1e-3
    with running(tmp_path / "evaluate-pod", ["evaluate", "--config", str(tmp_path / "run.json")]) as stage:
        assert stage.ends(0).message["fidelity"] == probed
    page, told = (tmp_path / "tuned" / "report.html").read_text(), (tmp_path / "tuned" / card.CARD).read_text()
    for text in (page, told):
        assert "As served against as trained" in text
        assert faithful.nats(probed["kl"]) in text
        assert "As trained: QLoRA in float32 beside a base quantised as NF4, read in float32." in text
    assert "The gate asks that the mean is not above 0.005." in page
    assert "The gate" not in told, "a card is of the model, whatever was asked"


FOUND = {
    "kl": 0.026, "klP99": 0.04, "klMax": 1.25, "differs": 0.015, "tokens": 1369, "rows": 40,
    "trained": "QLoRA beside a base", "served": "merged <b>",
}  # fmt: skip


def test_a_divergence_that_matters_is_told_as_such_with_its_figures() -> None:
    text = report.render(evaluations.report(fidelity=FOUND))
    for words in ("is not quite what was trained", "1.50 %", "0.0260", "0.0400", "1.2500", "1,369", "merged &lt;b&gt;"):
        assert words in text, words
    assert "The gate asks that the mean" not in text
    small = faithful.section({**FOUND, "kl": 3e-7, "differs": 0}, GateConfig.model_validate({"maxServingDivergence": 0.01}))
    for words in ("from what was trained is small: of the tokens of the answers none have", "3.0e-07", "not above 0.01"):
        assert words in small, words
    assert "small, and nothing but rounding lies between: of the" in faithful.sentence({**FOUND, "kl": 3e-7, "rounding": True})
    assert "rounding" not in faithful.sentence({**FOUND, "kl": 0.009, "rounding": False})


@pytest.mark.parametrize(
    ("method", "merged", "expected"),
    [
        ({"type": "LoRA"}, False, True),
        ({"type": "Full"}, True, True),
        ({"type": "QLoRA", "quantization": "NF4"}, True, True),
        ({"type": "QLoRA", "quantization": "NF4"}, False, False),
        ({"type": "QLoRA", "quantization": "Int8"}, True, False),
    ],
)
def test_rounding_is_named_as_the_cause_only_where_nothing_was_quantised_otherwise(
    method: dict[str, str], merged: bool, expected: bool
) -> None:
    how = fidelity.Made(MethodConfig.model_validate(method), TrainingConfig())
    assert fidelity._rounds_alone(how, merged=merged) is expected


def test_what_was_not_measured_says_why_and_what_was_not_asked_says_nothing() -> None:
    told = report.render(evaluations.report(fidelity={"unmeasured": "no room <b>"}))
    assert "Not measured: no room &lt;b&gt;" in told
    assert "As served" not in report.render(evaluations.report())
    for nothing in (None, {"unmeasured": "no room"}):
        assert "As served" not in card.render(evaluations.made(), card.Results("base", evaluations.report().compared, 95, None, nothing))


# ---- what keeps it from being measured


@pytest.fixture
def probed(work: Path, tiny_model: Path, trained: Trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """What the probe tells, with nothing of what was forgotten."""
    monkeypatch.setattr(probe, "measure", lambda *_, **__: {"percent": 0})

    def run(**overrides: Any) -> Any:
        config = RunConfig.model_validate(document(work, tiny_model, trained("LoRA").artifact, tmp_path / "fidelity", **overrides))
        return probe.main(config)["fidelity"]

    return run


def test_a_model_without_room_is_not_read_and_is_read_when_there_is(probed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(hardware, "memory", lambda: (2**30, "the container", "Raise compute.memory."))
        assert probed() == {"unmeasured": "the model takes about 1.5 GiB, and the container has 1.0 GiB. Raise compute.memory."}
    assert probed()["tokens"] > 0


def test_the_same_is_measured_once_and_another_way_of_serving_anew(
    probed: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count(1)
    monkeypatch.setattr(probe, "measure_fidelity", lambda *given: {"kl": next(calls), "merged": given[-1].merged})
    assert [probed(), probed()] == [{"kl": 1, "merged": True}, {"kl": 1, "merged": True}]
    assert probed(evaluation__fidelity={"path": str(tmp_path / "fidelity"), "merged": False}) == {"kl": 2, "merged": False}
    asked = FidelityConfig(path=tmp_path / "fidelity", skipped="the probe failed")
    assert probe.told(asked) == {"unmeasured": "the probe failed"}, "what was found is of another server"
    assert probe.told(asked.model_copy(update={"merged": False})) == {"kl": 2, "merged": False}


def test_an_artifact_that_does_not_say_how_it_was_trained_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(exits.UserError, match="does not say how it was trained"):
        fidelity.made(tmp_path)
    (tmp_path / "revision.json").write_text('{"method": {"type": "LoRA"}, "training": null}')
    with pytest.raises(exits.UserError, match="does not say how it was trained"):
        fidelity.made(tmp_path)
