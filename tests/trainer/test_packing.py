"""Packed rows and losses from hidden states: the same numbers as rows alone with all their logits, and a proof that refuses what leaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetune_trainer.config import MethodConfig, ModelConfig
from finetune_trainer.data.arrays import TokenArrays
from finetune_trainer.train import assemble, head, objective, packing, plan
from finetune_trainer.train.distributed import Ranks
from finetune_trainer.train.model import load_base
from torch.nn import functional

from tests.trainer import lives
from tests.trainer.support import make_config, on_ranks
from tests.trainer.test_families import FAMILIES, configured, models

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks transformers for it
__all__ = ["models"]
ONE, OTHER = [5, 9, 30, 31, 32, 77, 12], [40, 41, 42, 43, 44]
CPU = torch.device("cpu")


@pytest.fixture
def base(work: Path) -> Any:
    return load_base(ModelConfig(source="image:///x", path=work / "models" / "tiny"), False, CPU).eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_of_every_family_are_packed_and_read_as_each_alone(name: str, models: dict[str, Path]) -> None:
    base = load_base(ModelConfig(source="image:///x", path=models[name]), False, CPU).eval()
    rows = [(np.array(ids, dtype=np.uint32), np.arange(len(ids)) > 2) for ids in (ONE, OTHER, ONE[:4])]
    plain = objective.Reader(0, objective.can_keep_logits(base))
    with torch.no_grad():
        expected = torch.cat([objective.token_losses(base, objective.pack([row], plain, CPU), plain) for row in rows])
    output = head.usable(base, torch.tensor([ONE]))
    assert output is base.get_output_embeddings()
    assert packing.enable(base, ONE, OTHER, 9)
    reader = objective.reader(base, base, 0, output, packs=True)
    batch = objective.pack(rows, reader, CPU)
    assert batch.input_ids.shape == (1, sum(len(ids) for ids, _ in rows))
    assert batch.rows.tolist() == [0] * 4 + [1] * 2 + [2]
    with torch.no_grad():
        torch.testing.assert_close(objective.token_losses(base, batch, reader), expected, rtol=1e-5, atol=1e-5)


def leaks(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: Any = None, **_: Any) -> Any:
    groups = query.shape[1] // key.shape[1]
    said = functional.scaled_dot_product_attention(
        query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), is_causal=True, scale=scaling
    )
    return said.transpose(1, 2), None


def asks_more(*_: Any, **__: Any) -> Any:
    raise packing.Unpackable("attention with softcap")


@pytest.mark.parametrize(("attention", "why"), [(leaks, "not those that it has alone"), (asks_more, "Unpackable: attention with softcap")])
def test_a_model_whose_rows_would_see_each_other_is_padded(
    attention: Any, why: str, base: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    before = base(torch.tensor([ONE])).logits
    monkeypatch.setattr(packing, "attend", attention)
    assert not packing.enable(base, ONE, OTHER, 9)
    assert why in capsys.readouterr().out
    assert torch.equal(base(torch.tensor([ONE])).logits, before), "its own attention is back"


def test_memory_that_ran_out_is_no_finding(base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "attend", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        packing.enable(base, ONE, OTHER, 9)


def out_of_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("fails", [None, "packing", "head"])
def test_ranks_pack_and_take_the_head_apart_together_or_not_at_all(fails: str | None, work: Path) -> None:
    found = on_ranks(2, shortcuts_where_one_fails, fails, work / "models" / "tiny")
    packs, has_head = fails != "packing", fails != "head"
    assert found == [(packs, has_head, packing.ATTENTION if packs else "sdpa")] * 2


def shortcuts_where_one_fails(fails: str | None, model: Path) -> tuple[bool, bool, str]:
    """What a rank decides, and the attention that its model is left with, where the proof fails on rank 1 alone."""
    ranks = Ranks.join(60, gpus=False)
    base = load_base(ModelConfig(source="image:///x", path=model), False, CPU).eval()
    with pytest.MonkeyPatch.context() as patch:
        if not ranks.first and fails == "packing":
            patch.setattr(packing, "attend", asks_more)
        if not ranks.first and fails == "head":
            patch.setattr(head, "TOLERANCE", -1.0)
        packs, output = assemble.shortcuts(base, MethodConfig(), {"train": filled([7, 5])}, False, ranks)
    ranks.leave()
    return packs, output is not None, base.config._attn_implementation


def test_a_row_longer_than_a_window_of_the_models_attention_is_not_packed(base: Any) -> None:
    base.config.sliding_window = 8
    assert not packing.enable(base, ONE, OTHER, 9)
    assert packing.enable(base, ONE, OTHER, 8)


@pytest.mark.parametrize(("train", "validation", "packs"), [(8, 8, True), (8, 9, False), (9, 8, False), (8, None, True)])
def test_the_longest_row_of_any_split_is_held_against_the_window(train: int, validation: int | None, packs: bool, base: Any) -> None:
    base.config.sliding_window = 8
    data = {"train": filled([5, train]), "validation": filled([validation] if validation else [])}
    assert assemble.shortcuts(base, MethodConfig(), data, False, lives.ALONE)[0] is packs


def filled(lengths: list[int]) -> TokenArrays:
    ids = np.arange(sum(lengths), dtype=np.uint32) + 5
    return TokenArrays(ids, np.ones(len(ids), dtype=np.bool_), np.cumsum([0, *lengths]))


@pytest.mark.parametrize("asked", ["softcap", "s_aux", "position_bias"])
def test_attention_that_does_more_is_refused(asked: str) -> None:
    states = torch.zeros(1, 2, 4, 8)
    with pytest.raises(packing.Unpackable, match=asked):
        packing.attend(torch.nn.Identity(), states, states, states, None, **{asked: torch.ones(1)})


def test_a_head_that_is_not_all_there_is_to_logits_is_not_taken_apart(base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    true = type(base).forward

    def capped(self: Any, **arguments: Any) -> Any:
        found = true(self, **arguments)
        found.logits = 0.1 * torch.tanh(found.logits * 10)
        return found

    monkeypatch.setattr(type(base), "forward", capped)
    assert head.usable(base, torch.tensor([ONE])) is None
    monkeypatch.undo()
    base.lm_head.bias = torch.nn.Parameter(torch.zeros(base.config.vocab_size))
    assert head.usable(base, torch.tensor([ONE])) is None


@pytest.mark.parametrize("trains", [False, True], ids=["frozen head", "trained head"])
@pytest.mark.parametrize("chunk", [1, 60, 10_000])
def test_losses_in_chunks_have_the_gradients_of_plain_torch(trains: bool, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK_LOGITS", chunk)
    torch.manual_seed(3)
    output = torch.nn.Linear(8, 20, bias=False).double().requires_grad_(trains)
    states = torch.randn(7, 8, dtype=torch.float64, requires_grad=True)
    targets, scale = torch.randint(20, (7,)), torch.rand(7)
    found = head.token_losses(states, output, targets)
    expected = functional.cross_entropy(output(states).float(), targets, reduction="none")
    torch.testing.assert_close(found, expected)
    wanted = [states, output.weight] if trains else [states]
    for one, other in zip(*(torch.autograd.grad((losses * scale).sum(), wanted) for losses in (found, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_in_bfloat16_losses_from_hidden_states_are_those_of_logits() -> None:
    torch.manual_seed(3)
    output = torch.nn.Linear(64, 300, bias=False).requires_grad_(True)
    states = torch.randn(9, 64, requires_grad=True)
    targets = torch.randint(300, (9,))
    with torch.autocast("cpu", torch.bfloat16):
        found = head.token_losses(states, output, targets)
        expected = functional.cross_entropy(output(states).float(), targets, reduction="none")
    torch.testing.assert_close(found, expected)
    one, other = (torch.autograd.grad(losses.sum(), [states, output.weight]) for losses in (found, expected))
    for gradient, true in zip(one, other, strict=True):
        assert gradient.dtype == torch.float32
        assert functional.cosine_similarity(gradient.flatten(), true.flatten(), dim=0) > 0.999


@pytest.mark.parametrize(("method", "packs"), [("LoRA", True), ("Full", True), ("QLoRA", True), ("PrefixTuning", False)])
def test_what_trains_a_prompt_is_padded_all_else_packed(method: str, packs: bool, work: Path, tmp_path: Path) -> None:
    config = make_config("train", work, work / "models" / "tiny", method={"type": method, "objective": "SFT"})
    run = lives.build(config, tmp_path / "a0-one")
    assert run.steps.packed is packs
    reader = run.objective.reader  # type: ignore[attr-defined]
    assert (reader.packs, reader.head is not None) == (packs, True)


def test_a_head_that_got_an_adapter_gives_the_logits_itself(work: Path, models: dict[str, Path], tmp_path: Path) -> None:
    found = lives.train(configured(work, models["Llama"], targetModules=["lm_head"]), tmp_path)
    assert found.run.objective.reader.head is None  # type: ignore[attr-defined]
    assert all("lm_head" in name for name in found.run.engine.parameters)  # type: ignore[attr-defined]
    assert found.losses[len(found.losses)] < found.losses[1]


def test_packed_batches_hold_all_rows_within_the_limit_and_fewer_passes() -> None:
    lengths = np.array([100, 30, 70, 20, 90, 60, 10, 250])
    found = plan.batches(range(8), lengths, 200, packed=True)
    assert sorted(row for batch in found for row in batch) == list(range(8))
    sizes = [int(lengths[list(batch)].sum()) for batch in found]
    assert sizes == [250, 200, 180], "a row that is longer than the limit is alone"
    assert len(plan.batches(range(8), lengths, 200)) > 3
