"""`finetune-trainer estimate`: prepare's numbers without weights or data, and words for what is wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer import estimate, forecast, layout
from finetune_trainer.__main__ import main

from tests.trainer.test_command import command

LLAMA = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 259,
}  # fmt: skip
RUN = ("--rows", "100", "--tokens-per-row", "50")


def written(folder: Path, **changed: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**LLAMA, **changed}))
    return path


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["estimate", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_it_says_of_a_run_what_prepare_says(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared = layout.read_manifest(next((work / "data").glob("1f2e3d4c")), layout.DATA_MANIFEST)
    rows, tokens, expected = prepared["rows"], prepared["tokens"], prepared["estimate"]
    assert isinstance(rows, dict)
    assert isinstance(tokens, dict)
    assert isinstance(expected, dict)
    mean = -(-tokens["train"] // rows["train"])
    shutil.copy(work / "models" / "tiny" / "config.json", tmp_path / "tiny.json")
    found = told(
        capsys, "--model", str(tmp_path / "tiny.json"), "--rank", "4", "--rows", str(rows["train"]), "--tokens-per-row", str(mean),
        "--max-sequence-length", str(expected["longest"]), "--tokens-per-step", "300", "--epochs", "1", "--precision", "FP32",
    )  # fmt: skip
    assert found["estimate"] == {**expected, "seconds": pytest.approx(expected["seconds"], abs=1)}
    assert found["totalSteps"] == pytest.approx(prepared["totalSteps"], abs=1)


def test_each_method_is_told_with_what_it_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(written(tmp_path))
    lora = told(capsys, "--model", path, "--rank", "8", "--target-modules", "q_proj,v_proj", *RUN)
    assert lora["parameters"]["trained"] == 2 * 8 * ((64 + 64) + (64 + 32))
    full = told(capsys, "--model", str(tmp_path), "--method", "Full", *RUN)
    assert full["parameters"]["trained"] == full["parameters"]["base"] == lora["parameters"]["base"]
    prompt = told(capsys, "--model", path, "--method", "PromptTuning", "--virtual-tokens", "5", *RUN)
    assert prompt["parameters"]["trained"] == 5 * 64
    int8 = told(capsys, "--model", path, "--method", "QLoRA", "--quantization", "Int8", *RUN)["estimate"]["memory"]
    assert int8["weights"] < told(capsys, "--model", path, *RUN)["estimate"]["memory"]["weights"]
    dpo = told(capsys, "--model", path, "--objective", "DPO", "--rows", "100", "--tokens-per-row", "3000", "--accelerator", "h100")
    assert dpo["estimate"]["longest"] == 2 * 2048
    assert dpo["estimate"]["accelerated"], "an accelerator that is named is one a node"


MIXTRAL = {**LLAMA, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}


def test_experts_that_a_quantised_base_keeps_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 234,048 weights 196,608 are experts'."""
    path = str(written(tmp_path, **MIXTRAL))
    arguments = ("--model", path, *RUN, "--accelerator", "h100")
    quantized, plain = told(capsys, "--method", "QLoRA", *arguments), told(capsys, *arguments)
    share = round(100 * 2 * 4 * 3 * 64 * 128 / plain["parameters"]["base"])
    [warning] = quantized["warnings"]
    assert warning.startswith(f"QLoRA leaves {share} % of the model's weights as they are: the experts, 0.0 GiB in bfloat16 of 0.0 ")
    assert warning.endswith("method.type LoRA, whose weights ranks can divide (compute.sharding ZeRO3)")
    assert plain["warnings"] == told(capsys, "--method", "QLoRA", "--model", str(written(tmp_path)), *RUN)["warnings"] == []
    assert quantized["estimate"]["memory"]["weights"] > 2 * 196_608, "which the estimate counts"
    written(tmp_path, **MIXTRAL)
    assert main(["estimate", "--method", "QLoRA", *arguments]) == 0
    assert capsys.readouterr().out.rstrip().endswith("(compute.sharding ZeRO3).")


def test_what_is_computed_again_takes_the_place_of_activations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(written(tmp_path))
    kept, again = (told(capsys, "--model", path, *RUN, *flag)["estimate"] for flag in ((), ("--gradient-checkpointing",)))
    assert again["memory"] == {
        **{name: size for name, size in kept["memory"].items() if name != "activations"}, "recomputed": kept["recomputed"],
    }  # fmt: skip
    assert kept["recomputed"] < kept["memory"]["activations"]
    words = f"With gradient checkpointing it is {kept['recomputed'] / 2**30:.2f} GiB in place of activations"
    for flag, said in (((), True), (("--gradient-checkpointing",), False), (("--method", "PTuning"), False)):
        assert main(["estimate", "--model", path, *RUN, *flag]) == 0
        assert (words in capsys.readouterr().out) == said, flag


def test_people_read_a_table_that_knows_whatever_components_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    true = estimate.estimate

    def more(*arguments: Any, **named: Any) -> Any:
        found: Any = true(*arguments, **named)
        found["memory"] = {**found["memory"], "recomputed": 2**30}
        found["sharded"] = {**found["sharded"], "recomputed": 2**30}
        return found

    monkeypatch.setattr(estimate, "estimate", more)
    arguments = ["--accelerator", "h100", "--gpus-per-node", "8", "--nodes", "2"]
    assert main(["estimate", "--model", str(written(tmp_path)), *RUN, *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    words = [line.split() for line in lines]
    assert ["recomputed", "1.00"] in words
    assert words.count(["recomputed", "1.00"]) == 1, "what no rank divides is told once"
    assert ["masters", "0.00"] in words
    assert any(line.startswith("time     0.0 h on 16 GPUs, 0.1 GPU hours") for line in lines), lines
    assert main(["estimate", "--model", str(written(tmp_path)), *RUN, "--accelerator", "b900"]) == 0
    assert "how fast 'b900' is is not known" in capsys.readouterr().out


def test_methods_are_told_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--model", str(written(tmp_path)), *RUN, "--method", "Full", "--accelerator", "h100", "--compare"]
    methods = told(capsys, *asked, "--accelerator-memory", "16")["methods"]
    assert [(option["method"], option["asked"], option["ranks"]) for option in methods] == [
        ("Full", True, 1), ("LoRA", False, 1), ("QLoRA", False, 1), ("PromptTuning", False, 1),
    ]  # fmt: skip
    assert "methods" not in told(capsys, *asked[:-1])
    assert main(["estimate", *asked, "--accelerator-memory", "0.5"]) == 0
    assert re.search(r"^PromptTuning +1,280 +1\.\d +0\.0 +0\.0 +none$", capsys.readouterr().out, re.MULTILINE)
    assert main(["estimate", *asked]) == 0
    assert re.search(r"^method .*rank hours$", capsys.readouterr().out, re.MULTILINE), "of whose memory nothing is known"


def test_a_component_that_trains_is_divided(tmp_path: Path) -> None:
    outline = estimate.Outline(1000, 0, 0, 1000, 1000, 8, (), 16)
    assert set(forecast.DIVIDED) <= set(estimate.divisible(outline, bf16=True))


WRONG: dict[str, tuple[Any, tuple[str, ...], int, str]] = {
    "no such file": (None, RUN, 20, "--model: cannot read {path}: No such file or directory. Name a"),
    "no JSON": ("{", RUN, 20, "is not JSON"),
    "no model": ("[]", RUN, 20, "names no model_type"),
    "an unknown architecture": ({"model_type": "mamba9"}, RUN, 20, "knows no 'mamba9' ({path}). Take a model that"),
    "no language model": ({"model_type": "vit"}, RUN, 20, "describes no model"),
    "code of its own": ({"model_type": "mine", "auto_map": {}}, RUN, 20, "; the model brings code of its own, which is not run."),
    "a config that makes no sense": ({"num_attention_heads": 0}, RUN, 20, "describes no model"),
    "a padding beyond the vocabulary": ({"pad_token_id": 4000}, RUN, 20, "describes no model: Padding_idx must be within num_embeddings"),
    "embeddings that a prompt cannot be put before": (
        {"model_type": "cpmant", "num_hidden_layers": 2}, (*RUN, "--method", "PromptTuning"), 20,
        "method PromptTuning does not fit this model: 'NoneType' object has no attribute 'num_embeddings'. Use another method.",
    ),
    "a config that does not say what is counted by": (
        '{"model_type": "blt"}', RUN, 20,
        "of a model of type blt has no hidden_size, by which a run's memory is counted. Take a model of another type",
    ),
    "a size that is no number": ({"hidden_size": "wide"}, RUN, 20, "describes no model"),
    "no rows": ({}, ("--tokens-per-row", "5"), 2, "required: --rows"),
    "rows of nothing": ({}, ("--rows", "0", "--tokens-per-row", "5"), 2, "--rows: must be at least 1"),
    "an epoch that never ends": ({}, (*RUN, "--epochs", "inf"), 2, "--epochs: must be a number above 0"),
    "half a GPU": ({}, (*RUN, "--gpus-per-node", "0.5"), 2, "--gpus-per-node: invalid whole_number value: '0.5'"),
    "an unknown method": ({}, (*RUN, "--method", "lora"), 2, "invalid choice: 'lora' (choose from"),
    "a rank of Full": ({}, (*RUN, "--method", "Full", "--rank", "8"), 20, "--rank means nothing to --method Full. Use"),
    "quantised LoRA": ({}, (*RUN, "--quantization", "NF4"), 20, "--quantization means nothing to --method LoRA. Use --method QLoRA."),
    "modules that are not there": ({}, (*RUN, "--target-modules", "qqq"), 20, "the model has no qqq; it has down_proj"),
    "memory of no accelerator": (
        {}, (*RUN, "--compare", "--accelerator-memory", "80"), 20,
        "--accelerator-memory means nothing without --accelerator or --gpus-per-node.",
    ),
    "memory that nothing asks for": (
        {}, (*RUN, "--accelerator", "h100", "--accelerator-memory", "80"), 20,
        "--accelerator-memory means nothing without --compare. Add --compare.",
    ),
    "rows too long": ({}, (*RUN, "--max-sequence-length", "32"), 20, "longer than --max-sequence-length 32"),
}  # fmt: skip


@pytest.mark.parametrize(("changed", "arguments", "code", "words"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_in_a_line(
    changed: Any, arguments: tuple[str, ...], code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.json"
    if isinstance(changed, str):
        path.write_text(changed)
    elif changed is not None:
        written(tmp_path, **changed)
    assert main(["estimate", "--model", str(path), *arguments]) == code
    found = capsys.readouterr()
    assert words.format(path=path) in found.err
    assert not found.out
    assert code == 2 or found.err.count("\n") == 1, found.err


def test_a_model_that_brings_code_which_transformers_has_is_counted_by_that(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text("raise SystemExit('it was run')")
    path = str(written(tmp_path, auto_map={"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}))
    own = told(capsys, "--model", path, *RUN)
    assert own == told(capsys, "--model", str(written(tmp_path)), *RUN)


def test_a_fresh_interpreter_prints_the_object_alone_and_help_has_an_example(tmp_path: Path) -> None:
    code, output, message = command(tmp_path, "estimate", "--model", str(written(tmp_path)), *RUN, "--json")
    assert (code, message) == (0, {}), output
    assert json.loads(output)["estimate"]["memoryBytes"] > 0
    code, output, _ = command(tmp_path, "estimate", "--help")
    assert code == 0
    assert "finetune-trainer estimate --model ./Llama-3.1-8B/config.json --method LoRA" in output
