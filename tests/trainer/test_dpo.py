"""Preferences: rows to pairs, the loss against plain torch, and whole lives under several methods."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.config import RunConfig
from finetune_trainer.data import formats, preference, prepare
from finetune_trainer.data.formats import RowError
from finetune_trainer.data.personal import Scan
from finetune_trainer.data.reading import RawRow
from finetune_trainer.data.templates import ChatEncoder, end_tokens, unproven
from finetune_trainer.exits import UserError
from finetune_trainer.serve.loading import load
from finetune_trainer.train import dpo, optimizer
from transformers import AutoModelForCausalLM

from tests.trainer import lives
from tests.trainer.support import make_config, rows, training, write_rows
from tests.trainer.test_methods import METHODS

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks transformers for it
BETA = 0.3


def preferences() -> list[dict[str, str]]:
    """Pairs of unequal length: the true answer, and one that says nothing."""
    return [
        {"prompt": row["instruction"], "chosen": row["output"], "rejected": "I cannot say" + " at all" * (index % 3) + "."}
        for index, row in enumerate(rows())
    ]


@pytest.fixture(scope="module")
def pairs(work: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of prepared preferences."""
    folder = tmp_path_factory.mktemp("preferences")
    source = write_rows(folder / "rows.jsonl", preferences())
    config = make_config("prepare", work, tiny_model, source, data__path=str(folder / "data"), method__objective="DPO")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_PROGRESS_PORT", "0")
        prepare.main(RunConfig.model_validate(config))
    return folder / "data"


def configured(work: Path, tiny_model: Path, pairs: Path, name: str, **overrides: Any) -> dict[str, Any]:
    method, training = METHODS[name]
    wanted = {**method, "objective": "DPO", "dpo": {"beta": BETA}}
    config = make_config("train", work, tiny_model, method=wanted, data__path=str(pairs), **overrides)
    return {**config, "training": {**config["training"], "tokensPerStep": 700, **training}}


SPELT: dict[str, dict[str, Any]] = {
    "texts": {"prompt": "Hello?", "chosen": "Hi.", "rejected": "No."},
    "a prompt of turns": {"prompt": [{"role": "user", "content": "Hello?"}], "chosen": "Hi.", "rejected": "No."},
    "turns": {
        "prompt": [{"role": "user", "content": "Hello?"}],
        "chosen": [{"role": "assistant", "content": "Hi."}],
        "rejected": [{"role": "assistant", "content": "No."}],
    },
    "whole conversations": {
        "chosen": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}],
        "rejected": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "No."}],
    },
}


@pytest.mark.parametrize("value", SPELT.values(), ids=SPELT)
def test_a_pair_in_every_spelling(value: dict[str, Any]) -> None:
    raw = RawRow("configmap://a/b", 1, value)
    assert formats.detect("configmap://a/b", [raw]) == "Preference"
    row = formats.convert(raw, "Preference")
    prompt = {"role": "user", "content": "Hello?"}
    assert row.messages == (prompt, {"role": "assistant", "content": "Hi."})
    assert row.rejected == (prompt, {"role": "assistant", "content": "No."})


BROKEN: dict[str, tuple[Any, str]] = {
    "no rejected answer": ({"prompt": "a", "chosen": "b"}, "field rejected is missing"),
    "the same answer": ({"prompt": "a", "chosen": "b", "rejected": " b "}, "the same answer"),
    "an empty answer": ({"prompt": "a", "chosen": " ", "rejected": "c"}, "turn 2 (assistant) is empty (with the chosen answer)"),
    "a number": ({"prompt": "a", "chosen": 3, "rejected": "c"}, "field chosen is a number, not text (with the chosen answer)"),
    "other prompts": (
        {key: [{"role": "user", "content": key}, {"role": "assistant", "content": key}] for key in ("chosen", "rejected")},
        "different conversations",
    ),
    "no object": ([1], "not a JSON object but a list"),
}


@pytest.mark.parametrize(("value", "reason"), BROKEN.values(), ids=BROKEN)
def test_what_is_wrong_with_a_pair_is_told(value: Any, reason: str) -> None:
    with pytest.raises(RowError) as found:
        formats.convert(RawRow("configmap://a/b", 7, value), "Preference")
    assert reason in str(found.value)


def test_a_broken_line_is_told_as_such() -> None:
    with pytest.raises(RowError, match=r"^not JSON: here$"):
        formats.convert(RawRow("configmap://a/b", 7, None, "not JSON: here"), "Preference")


@pytest.mark.parametrize(("objective", "values"), [("SFT", preferences()), ("DPO", rows())])
def test_an_objective_refuses_rows_that_it_cannot_learn_from(
    objective: str, values: list[Any], work: Path, tiny_model: Path, tmp_path: Path
) -> None:  # fmt: skip
    source = write_rows(tmp_path / "rows.jsonl", values)
    config = make_config("prepare", work, tiny_model, source, data__path=str(tmp_path / "data"), method__objective=objective)
    with pytest.raises(UserError, match=f"method.objective is {objective}"):
        prepare.main(RunConfig.model_validate(config))


def test_prepared_pairs_supervise_the_answers_alone_and_seal_the_chosen_one(pairs: Path, tiny_model: Path, work: Path) -> None:
    tokenizer = prepare.load_tokenizer(work / "models" / "tiny", False)
    split = preference.load(pairs, "train")
    known = {(row["chosen"], row["rejected"]) for row in preferences()}
    for index in range(len(split)):
        answers = tuple(tokenizer.decode(ids[mask], skip_special_tokens=True) for ids, mask in split.pair(index))  # type: ignore[attr-defined]
        assert answers in known
        prompts = [ids[~mask].tolist() for ids, mask in split.pair(index)]
        assert prompts[0][: len(prompts[1])] == prompts[1][: len(prompts[0])]
    sealed = [json.loads(line)["reference"] for line in (pairs / "test.jsonl").read_text().splitlines()]
    assert sealed
    assert set(sealed) <= {row["chosen"] for row in preferences()}


def test_what_is_personal_is_redacted_in_both_answers() -> None:
    raw = RawRow("configmap://a/b", 1, {"prompt": "Who?", "chosen": "Ask x@y.org.", "rejected": "Not y@z.org."})
    row = Scan("Redact").apply(formats.convert(raw, "Preference"))
    assert [turns[-1]["content"] for turns in (row.messages, row.rejected)] == ["Ask [email].", "Not [email]."]


def test_neither_answer_may_have_a_mask_that_is_not_proven(tiny_model: Path, work: Path) -> None:
    tokenizer: Any = prepare.load_tokenizer(work / "models" / "tiny", False)
    row = formats.convert(RawRow("configmap://a/b", 1, SPELT["texts"]), "Preference")
    [pair] = preference.PairEncoder(ChatEncoder(tokenizer)).encode_all([row])
    assert isinstance(pair, preference.EncodedPair)
    spoilt = [replace(pair, mask=(*pair.mask[:place], False, *pair.mask[place + 1 :])) for place in _last_supervised(pair)]
    assert unproven([pair, *spoilt], end_tokens(tokenizer), tokenizer) == [False, True, True]


def _last_supervised(pair: preference.EncodedPair) -> list[int]:
    """Of each conversation, where its end of turn is in the pair."""
    places = [place for place, supervised in enumerate(pair.mask) if supervised]
    return [max(place for place in places if place < pair.seam), places[-1]]


def test_a_pair_whose_rejected_conversation_the_template_refuses_is_told(
    tiny_model: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer: Any = prepare.load_tokenizer(work / "models" / "tiny", False)
    refuses = "{% if messages[-1]['content'] == 'No.' %}{{ raise_exception('rude') }}{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", refuses + tokenizer.chat_template)
    row = formats.convert(RawRow("configmap://a/b", 1, SPELT["texts"]), "Preference")
    [found] = preference.PairEncoder(ChatEncoder(tokenizer)).encode_all([row])
    assert str(found) == "the chat template refuses it: rude"


def test_what_is_mixed_in_must_fit_the_objective(work: Path, tiny_model: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", preferences())
    mixed = write_rows(tmp_path / "mixed.jsonl", rows())
    config = make_config(
        "prepare", work, tiny_model, source, data__path=str(tmp_path / "data"), method__objective="DPO",
        data__mix=[{"source": "pvc://sets/mixed.jsonl", "mount": str(mixed), "percent": 10}],
    )  # fmt: skip
    with pytest.raises(UserError, match=r"pvc://sets/mixed.jsonl is InstructionInputOutput, and method.objective is DPO"):
        prepare.main(RunConfig.model_validate(config))


@pytest.mark.parametrize(("name", "virtual"), [("LoRA", 0), ("prompt tuning", 5)])
def test_a_revision_with_another_method_takes_pairs_over_and_counts_its_own_passes(
    name: str, virtual: int, work: Path, tiny_model: Path, tmp_path: Path
) -> None:  # fmt: skip
    source = write_rows(tmp_path / "rows.jsonl", preferences())
    results = {}
    for revision, method in (("1a1a1a1a", "Full"), ("2b2b2b2b", name)):
        wanted = {**METHODS[method][0], "objective": "DPO"}
        config = make_config("prepare", work, tiny_model, source, data__path=str(tmp_path / "data" / revision), method=wanted)
        results[revision] = prepare.main(RunConfig.model_validate(config))["estimate"]["longest"]  # type: ignore[index]
    one, other = (tmp_path / "data" / revision / "train.seams.npy" for revision in results)
    assert one.samefile(other)
    widest = max(preference.load(other.parent, "train").widths)
    assert list(results.values()) == [widest, widest + 2 * virtual]


@pytest.mark.parametrize("policy", ["Truncate", "Drop"])
def test_a_pair_is_as_long_as_its_longer_conversation(policy: str, work: Path, tiny_model: Path, tmp_path: Path) -> None:
    long = [{"prompt": f"Say {n}.", "chosen": "Yes.", "rejected": "No, " * 60 + str(n)} for n in range(12)]
    source = write_rows(tmp_path / "rows.jsonl", [*preferences(), *long])
    config = make_config(
        "prepare", work, tiny_model, source, data__path=str(tmp_path / "data"), method__objective="DPO",
        data__quality={"minResponseCharacters": 1, "maxTokens": 120, "onTooLong": policy},
    )  # fmt: skip
    found = prepare.main(RunConfig.model_validate(config))
    split = preference.load(tmp_path / "data", "train")
    assert found["rows"]["tooLong"] == 12  # type: ignore[index]
    assert max(split.widths) <= 240
    assert (max(split.widths) == 240) == (policy == "Truncate")


def test_the_losses_are_those_of_plain_torch(work: Path, tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    """Two models, all logits, one pair at a time, torch's own clipping: nothing of the trainer but which rows a step takes."""
    config = configured(work, tiny_model, pairs, "Full")
    config["training"] = {**config["training"], "learningRate": 1e-4, "earlyStoppingPatience": None}
    found = lives.train(config, tmp_path)
    settings, steps, split = found.run.training, found.run.steps, preference.load(pairs, "train")
    policy, reference = (AutoModelForCausalLM.from_pretrained(tiny_model) for _ in range(2))
    adam = torch.optim.AdamW(policy.parameters(), weight_decay=settings.weight_decay)

    def answer(model: Any, ids: Any, mask: Any) -> torch.Tensor:
        tokens = torch.from_numpy(ids.astype("int64"))
        chosen = model(tokens[None]).logits[0, :-1].log_softmax(-1).gather(1, tokens[1:, None])[:, 0]
        total: torch.Tensor = (chosen * torch.from_numpy(mask[1:].astype("float32"))).sum()
        return total

    def loss(index: int) -> torch.Tensor:
        (good, bad) = split.pair(index)
        with torch.no_grad():
            known = answer(reference, *good) - answer(reference, *bad)
        return torch.log1p(torch.exp(-BETA * (answer(policy, *good) - answer(policy, *bad) - known)))

    expected = {}
    for step in range(steps.total_steps):
        for group in adam.param_groups:
            group["lr"] = optimizer.learning_rate(step, steps.total_steps, settings)
        total = torch.stack([loss(row) for row in steps.rows(step)]).mean()
        adam.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(policy.parameters(), settings.clip_norm)
        adam.step()
        expected[step + 1] = total.item()
    assert found.losses[1] == pytest.approx(math.log(2), abs=1e-5), "at first both models are the same"
    assert found.losses == pytest.approx(expected, rel=1e-4)
    assert expected[steps.total_steps] < 0.6


@pytest.mark.parametrize("name", ["LoRA", "Full", "QLoRA NF4", "prompt tuning", "prefix tuning", "P-tuning"])
def test_preferences_are_learnt_under_every_kind_of_method(name: str, work: Path, tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    config = configured(work, tiny_model, pairs, name)
    undisturbed = lives.train(config, tmp_path / "undisturbed")
    found = lives.train(config, tmp_path / "resumed", stop_after=2)
    assert found.losses == undisturbed.losses, "a resumed run is the same run"
    assert undisturbed.losses[len(undisturbed.losses)] < 0.69
    run = found.run
    run.model.eval()
    every = list(range(len(run.train)))
    with torch.no_grad():
        gained = dpo.log_probabilities(run.model, run.train.pairs, every, run.objective.reader, lives.ALONE.device) - run.train.reference  # type: ignore[attr-defined]
    assert (gained[:, 0] > gained[:, 1]).float().mean() > 0.8, "chosen answers gained on rejected ones"
    whole = name == "Full"
    loaded = load(found.artifact if whole else work / "models" / "tiny", None if whole else found.artifact, dtype=torch.float32)
    for prompt in lives.PROMPTS:
        torch.testing.assert_close(lives.served_logits(loaded, prompt), lives.trained_logits(run, prompt), rtol=0, atol=2e-5)


def test_a_resumed_run_does_not_read_all_answers_again(
    work: Path, tiny_model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    calls: list[int] = []
    refer = dpo.refer

    def counted(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return refer(*arguments)

    monkeypatch.setattr(dpo, "refer", counted)
    lives.train(configured(work, tiny_model, pairs, "LoRA"), tmp_path, stop_after=2)
    assert len(calls) == 2, "train and validation, once"


def test_what_is_computed_again_trains_the_same(work: Path, tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    kept, again = (configured(work, tiny_model, pairs, "LoRA", training__gradientCheckpointing=again) for again in (False, True))
    expected = lives.train(kept, tmp_path / "kept").losses
    assert lives.train(again, tmp_path / "again").losses == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("name", "sharding"), [("LoRA", "DDP"), ("Full", "DDP"), ("Full", "ZeRO2")])
def test_two_ranks_give_the_losses_of_one(name: str, sharding: str, work: Path, tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    config = configured(work, tiny_model, pairs, name, compute__nodes=2, run__path=str(tmp_path / "gang" / "a0"))
    config["method"] = {**config["method"], **({"lora": {"rank": 4, "alpha": 8, "dropout": 0}} if name == "LoRA" else {})}
    alone = lives.train(config, tmp_path / "alone")
    with training(tmp_path / "pods", {**config, "compute": {**config["compute"], "sharding": sharding}}) as [first, second]:
        first.ends(0, 240)
        second.ends(0)
    assert first.losses == pytest.approx(alone.losses, rel=1e-4, abs=1e-6)
