"""The loop's numbers: equal however a step is cut, however often it stops, and the same for the same seed."""

from __future__ import annotations

import errno
import os
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer import hardware
from finetune_trainer.config import LoraConfig, MethodConfig, ModelConfig, RunConfig, TrainingConfig, need
from finetune_trainer.data import arrays
from finetune_trainer.exits import Interrupted, NonFinite
from finetune_trainer.progress import Progress
from finetune_trainer.train import adapters, assemble, checkpoint, distributed, model, objective, plan
from finetune_trainer.train.distributed import Ranks
from finetune_trainer.train.engine import Replicated
from finetune_trainer.train.loop import Loop, Run
from finetune_trainer.train.loop import _Speed as Speed
from finetune_trainer.train.model import trained
from torch.nn import functional

from tests.trainer import lives
from tests.trainer.support import make_config, on_ranks

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks transformers for it
ALONE = Ranks(0, 0, 1, torch.device("cpu"))


@pytest.fixture
def make_run(work: Path, tmp_path: Path) -> Any:
    def make(micro: int = 2048, resume: Any = None, dropout: float = 0, **training: Any) -> Run:
        data = work / "data" / "1f2e3d4c"
        train, validation = arrays.load(data, "train"), arrays.load(data, "validation")
        settings = TrainingConfig.model_validate({"learningRate": 0.003, "seed": 17, "checkpoint": {"everySeconds": None}, **training})
        path = work / "models" / "tiny"
        base = model.load_base(ModelConfig(source="image:///x", path=path), False, ALONE.device)
        wrapped = adapters.wrap(base, MethodConfig(lora=LoraConfig(rank=4, alpha=8, dropout=dropout)), path, settings.seed)
        return Run(
            ranks=ALONE, engine=Replicated(wrapped, settings, ALONE), objective=objective.Sft(objective.reader(wrapped, base, 0)),
            training=settings, steps=plan.make(train.lengths, 500, 1, settings.seed, micro), train=train, validation=validation,
            bf16=False, attempt=tmp_path / "attempt", fingerprint="f", progress=Progress("train"), beat=lambda: None, resume=resume,
        )  # fmt: skip

    return make


def losses(run: Run, monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[float]:
    """Loss by step; asks to stop during the given one."""
    found: list[float] = []
    if stop_after is not None:
        lives.stop_during(run, stop_after)

    def report(loop: Loop, step: int, loss: float, rate: float) -> None:
        found.append(loss)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_report", report)
        Loop(run).execute()
    return found


def test_the_loss_is_the_mean_over_supervised_tokens_as_torch_computes_it(make_run: Any) -> None:
    run = make_run()
    rows = run.steps.rows(0)
    total = 0.0
    for row in rows:
        ids, mask = (torch.from_numpy(values.copy()) for values in run.train.row(row))
        logits = run.model(input_ids=ids.long()[None]).logits[0, :-1]
        total += functional.cross_entropy(logits, torch.where(mask, ids.long(), -100)[1:], ignore_index=-100, reduction="sum").item()
    for keeps in (True, False):
        reader = objective.Reader(0, keeps)
        found = objective.loss_sum(run.model, objective.collate(run.train, rows, reader, ALONE.device), reader)
        assert found.item() == pytest.approx(total, rel=1e-6)


def test_one_pass_of_eight_rows_is_four_passes_of_two(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = make_run(micro=100_000), make_run(micro=170)
    assert [len(whole.steps.micro_batches(step, 0, 1)) for step in range(3)] == [1, 1, 1]
    assert all(len(cut.steps.micro_batches(step, 0, 1)) >= 3 for step in range(3))
    assert losses(whole, monkeypatch) == pytest.approx(losses(cut, monkeypatch), rel=1e-5)


def test_after_memory_ran_out_a_pass_is_smaller_and_the_run_is_the_same(work: Path) -> None:
    config = RunConfig.model_validate(make_config("train", work, work / "models" / "tiny"))
    again = config.model_copy(update={"training": need(config.training, "training").model_copy(update={"micro_batch_divisor": 4})})
    sizes = [hardware.micro_batch_tokens(need(c.training, "training"), need(c.compute, "compute")) for c in (config, again)]
    assert sizes[0] == 4 * sizes[1]
    manifests = ({"digest": "m"}, {"digest": "d"})
    assert assemble.fingerprint(config, *manifests) == assemble.fingerprint(again, *manifests), "its checkpoints are resumed from"


def test_the_same_seed_gives_the_same_losses_and_another_seed_others(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = losses(make_run(dropout=0.2), monkeypatch)
    assert losses(make_run(dropout=0.2), monkeypatch) == first
    assert losses(make_run(dropout=0.2, seed=18), monkeypatch) != first


@pytest.mark.parametrize("stop", [1, 4])
def test_a_run_that_was_stopped_and_resumed_equals_one_that_was_not(stop: int, make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = losses(make_run(dropout=0.2), monkeypatch)
    stopped = make_run(dropout=0.2)
    with pytest.raises(Interrupted, match=f"after step {stop}"):
        losses(stopped, monkeypatch, stop)
    found = checkpoint.newest([stopped.attempt], "f")
    assert found is not None
    resumed = losses(make_run(dropout=0.2, resume=found[1]), monkeypatch)
    assert resumed == undisturbed[stop:]


def test_training_learns(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = losses(make_run(), monkeypatch)
    assert found[-1] < found[0] - 0.1


def test_the_adapters_of_the_lowest_validation_loss_are_exported(make_run: Any) -> None:
    run = make_run(evaluateEverySteps=1)
    outcome = Loop(run).execute()
    assert outcome.state.best_step is not None
    assert outcome.state.best_loss == pytest.approx(outcome.state.best_loss)
    again = make_run(evaluateEverySteps=1)
    loop = Loop(again)
    with torch.no_grad():
        for name, parameter in trained(again.model).items():
            parameter.copy_(outcome.weights[name])
    assert loop._validation_loss() == pytest.approx(outcome.state.best_loss, rel=1e-6)


def test_training_stops_when_validation_gets_worse_as_often_as_patience_allows(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([3.0, 2.0, 2.5, 2.4])
    monkeypatch.setattr(Loop, "_validation_loss", lambda loop: next(values))
    outcome = Loop(make_run(evaluateEverySteps=1, earlyStoppingPatience=2)).execute()
    assert (outcome.stopped_early, outcome.state.step, outcome.state.best_step) == (True, 4, 2)


def test_patience_that_runs_out_with_the_last_step_stops_nothing_early(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(evaluateEverySteps=1, earlyStoppingPatience=2)
    last = run.steps.total_steps
    values = iter([3.0] * (last - 2) + [5.0, 5.0])
    falling = (value - step * 1e-3 if value < 5 else value for step, value in enumerate(values))
    monkeypatch.setattr(Loop, "_validation_loss", lambda loop: next(falling))
    outcome = Loop(run).execute()
    assert (outcome.stopped_early, outcome.state.step, outcome.state.best_step) == (False, last, last - 2)


def test_a_run_whose_patience_had_run_out_when_it_was_saved_is_over(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([3.0, 2.0, 2.5, 2.4])
    monkeypatch.setattr(Loop, "_validation_loss", lambda loop: next(values))
    settings: dict[str, Any] = {"evaluateEverySteps": 1, "earlyStoppingPatience": 2, "checkpoint": {"everySteps": 4, "everySeconds": None}}
    Loop(make_run(**settings)).execute()
    found = checkpoint.newest([make_run().attempt], "f")
    assert found is not None
    outcome = Loop(make_run(resume=found[1], **settings)).execute()
    assert (outcome.stopped_early, outcome.state.step, outcome.state.best_step) == (True, 4, 2)


def test_a_gradient_that_is_not_finite_is_skipped_and_a_lasting_one_ends_the_run(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    true, bad = objective.loss_sum, {1}
    calls = 0

    def loss_sum(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return true(*arguments) * (float("nan") if calls in bad else 1)

    monkeypatch.setattr(objective, "loss_sum", loss_sum)
    outcome = Loop(run).execute()
    assert outcome.state.skipped == 1
    assert all(torch.isfinite(tensor).all() for tensor in outcome.weights.values())
    calls, bad = 0, set(range(1000))
    with pytest.raises(NonFinite, match="also after a roll-back"):
        Loop(make_run(evaluateEverySteps=1000)).execute()


def test_no_checkpoint_is_made_of_weights_that_the_last_step_could_not_use(make_run: Any) -> None:
    """Steps 4 to 6 are not finite because of what step 3 left: the roll-back goes behind it, though a checkpoint was due at 4."""
    run = make_run(checkpoint={"everySteps": 2, "everySeconds": None, "keep": 9}, evaluateEverySteps=1000)
    step, saved = run.engine.step, list[int]()
    [first, *_] = trained(run.model).values()

    def astray(loss: torch.Tensor, rate: float) -> torch.Tensor:
        found = step(loss, rate)
        if run.step + 1 == 3:
            with torch.no_grad():
                first.fill_(float("nan"))
        return found

    run.engine.step = astray
    with pytest.MonkeyPatch.context() as patch:
        save = checkpoint.save
        patch.setattr(checkpoint, "save", lambda attempt, content, keep: saved.append(content.state.step) or save(attempt, content, keep))
        outcome = Loop(run).execute()
    assert (outcome.state.skipped, saved) == (3, [2, 6]), "of what it went back to"
    assert all(torch.isfinite(value).all() for value in outcome.weights.values())


def test_gradients_are_clipped_to_the_norm(make_run: Any) -> None:
    loop = Loop(make_run(clipNorm=0.5))
    engine: Any = loop.engine
    engine.begin()
    engine.flat[:-1] = 3.0
    assert engine.step(torch.tensor(2.0), 0.0).tolist() == [2.0, 1.0]
    assert float(torch.linalg.vector_norm(engine.flat[:-1])) == pytest.approx(0.5, rel=1e-4)


def test_lora_goes_to_every_linear_layer_but_the_head(make_run: Any) -> None:
    run = make_run()
    names = {name.split(".")[-4] for name in trained(run.model)}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_speed_is_told_of_all_and_of_supervised_tokens_and_as_a_share_of_the_peak() -> None:
    speed = Speed()
    for at, (tokens, supervised) in enumerate(((0, 0), (100, 30), (300, 50))):
        speed.mark(float(at), tokens, supervised)
    assert speed.facts(1e-3) == {"tokensPerSecond": 150, "supervisedTokensPerSecond": 40, "mfu": 0.15, "secondsPerStep": 1}
    assert speed.facts(None)["mfu"] is None


def test_a_step_that_is_told_late_ended_when_it_ended(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, step = make_run(), Loop._made

    def slow(*arguments: Any) -> torch.Tensor:
        time.sleep(0.05)
        return step(*arguments)

    monkeypatch.setattr(Loop, "_made", slow)
    made = Loop(run)
    made.execute()
    ended = [at for at, *_ in made.speed.marks]
    assert len(ended) > 2
    assert min(later - at for at, later in pairwise(ended)) >= 0.05, "the last one is told with the one before it"


def test_progress_tells_both_speeds(work: Path, tmp_path: Path) -> None:
    run = lives.build(make_config("train", work, work / "models" / "tiny"), tmp_path / "a0-one")
    Loop(run).execute()
    told = run.progress.snapshot()
    assert 0 < told["supervisedTokensPerSecond"] < told["tokensPerSecond"]  # type: ignore[operator]
    assert told["mfu"] is None, "the peak of a CPU is not known"


@pytest.mark.parametrize(("size", "beats"), [(distributed.SLOWEST, True), (0, False)])
def test_who_waits_for_what_rank_0_writes_beats_as_long_as_that_may_take(size: int, beats: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "TICK_SECONDS", 0.02)
    found: list[str] = []

    def write() -> str:
        time.sleep(0.3)
        found.append("written")
        return "path"

    assert ALONE.first_does(write, lambda: found.append("beat"), size) == "path"
    assert found[-2:] == ["written", "beat"]
    assert ("beat" in found[:-2]) is beats


def test_what_rank_0_cannot_write_is_raised_there() -> None:
    def write() -> None:
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        ALONE.first_does(write, lives.silent, 1)


def test_all_ranks_beat_while_rank_0_saves_and_go_on_when_it_has(work: Path, tmp_path: Path) -> None:
    config = make_config("train", work, work / "models" / "tiny", compute__nodes=2)
    for beats, is_committed in on_ranks(2, saves_slowly, config, str(tmp_path / "a0-x")):
        assert beats >= 5
        assert is_committed


def saves_slowly(config: dict[str, Any], attempt: str) -> tuple[int, bool]:
    """How often a rank beats in a save of two seconds, and whether the checkpoint is there afterwards."""
    run = lives.build_on(config, Path(attempt))
    beats: list[float] = []
    run.beat = lambda: beats.append(time.monotonic())
    save = checkpoint.save

    def slowly(*arguments: Any) -> Path:
        time.sleep(2)
        return save(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "TICK_SECONDS", 0.1)
        patch.setattr(distributed, "SLOWEST", 1)
        patch.setattr(checkpoint, "save", slowly)
        Loop(run)._save()
        is_committed = bool(checkpoint.found([Path(attempt)]))
    run.ranks.leave()
    return len(beats), is_committed


def test_ranks_that_resume_beat_while_one_of_them_verifies_or_reads(work: Path, tmp_path: Path) -> None:
    """A large model's checkpoint takes longer to verify, to read, and the model to load, than a rank may be silent."""
    config = make_config("train", work, work / "models" / "tiny", compute__nodes=2, training__checkpoint={"everySteps": 2, "keep": 1})
    attempt = tmp_path / "a0-x"
    Loop(lives.build({**config, "compute": {**config["compute"], "nodes": 1}}, attempt)).execute()
    for beats, resumed in on_ranks(2, resumes_slowly, config, str(attempt)):
        assert resumed
        assert all(count >= 5 for count in beats.values()), beats


def resumes_slowly(config: dict[str, Any], attempt: str) -> tuple[dict[str, int], bool]:
    """How often a rank beats while rank 0 finds a checkpoint, while rank 1 reads it, and while rank 1 loads the model: each of them takes
    until both ranks have beaten five times, for a rank that comes late to it has little to wait for."""
    said, mine = Path(attempt).parent / "said", int(os.environ["RANK"])
    said.mkdir(exist_ok=True)
    stage = ["verify"]
    found, read, loaded = checkpoint.newest, checkpoint.load, model.load_base

    def beats(rank: int, name: str) -> int:
        file = said / str(rank)
        return file.read_text().split().count(name) if file.exists() else 0

    def slowly(then: Any, rank: int, name: str) -> Any:
        def work(*arguments: Any, **named: Any) -> Any:
            until = time.monotonic() + 20
            while mine == rank and min(beats(0, name), beats(1, name)) < 5 and time.monotonic() < until:
                time.sleep(0.05)
            return then(*arguments, **named)

        return work

    def beat() -> None:
        with (said / str(mine)).open("a") as file:
            file.write(f"{stage[0]}\n")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "TICK_SECONDS", 0.02)
        patch.setattr(distributed, "SLOWEST", 1)
        patch.setattr(distributed, "SLOWEST_READ", 1)
        patch.setattr(checkpoint, "newest", slowly(found, 0, "verify"))
        patch.setattr(checkpoint, "load", slowly(read, 1, "read"))
        patch.setattr(model, "load_base", slowly(loaded, 1, "load"))
        all_do = Ranks.all_do

        def staged(ranks: Ranks, *arguments: Any) -> Any:
            stage[0] = "read" if stage[0] == "verify" else "load"
            return all_do(ranks, *arguments)

        patch.setattr(Ranks, "all_do", staged)
        run = lives.build_on(config, Path(attempt), beat)
    run.ranks.leave()
    return {name: beats(mine, name) for name in ("verify", "read", "load")}, run.resume is not None


def test_ranks_whose_cpus_differ_compute_in_the_same_precision(work: Path, tmp_path: Path) -> None:
    config = make_config("train", work, work / "models" / "tiny", compute__nodes=2, training__precision="Auto")
    assert on_ranks(2, _precision_where_one_has_bf16, config, str(tmp_path / "a0-x")) == [False, False]


def _precision_where_one_has_bf16(config: dict[str, Any], attempt: str) -> bool:
    hardware.cpu_prefers_bf16 = lambda *_: os.environ["RANK"] == "0"
    return lives.build_on(config, Path(attempt)).bf16
