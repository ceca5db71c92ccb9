"""`finetune-trainer probe`: measures before an evaluation how much the tuned model has forgotten, and how far it is as served from what was
trained, into folders that the evaluation reads.

It runs before the model server starts, with the accelerator that this will have. Whatever keeps it from measuring, but the volume, is
written down as the reason: an evaluation does not fail of it.
Invariant: a folder that counts and measured the same two models with the same texts (answers) is taken as it is.
"""

from __future__ import annotations

import faulthandler
import gc
import hashlib
import json
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_trainer import exits, hardware, layout
from finetune_trainer.config import FidelityConfig, ForgettingConfig, ModelConfig, RunConfig, need
from finetune_trainer.evaluate.rows import RESULT, test_rows
from finetune_trainer.exits import Infrastructure, Interrupted, JsonObject, OutOfMemory

UNMEASURED = "unmeasured"  # why there are no figures
LONGEST_SECONDS = 2 * 3600  # the Job's deadline is for the evaluation, too
RUNTIME_BYTES = 1_300_000_000  # beside the weights: the libraries, and the logits of some texts


def main(config: RunConfig) -> JsonObject:
    """`{stage, …}` with what `told` gives. Raises Infrastructure where the volume fails."""
    evaluation = need(config.evaluation, "evaluation")
    forgetting, fidelity = need(evaluation.forgetting, "evaluation.forgetting"), evaluation.fidelity
    tuned, adapter = config.model.path, evaluation.adapter_path
    with bounded(LONGEST_SECONDS):
        _once(
            forgetting, _key(forgetting.quantized, tuned, adapter, forgetting.base),
            lambda: measure(forgetting.base, tuned, adapter, evaluation.confidence_percent, quantized=forgetting.quantized),
        )  # fmt: skip
        if fidelity is not None:
            data = need(config.data, "data").path
            key = _key(fidelity.merged, tuned, adapter, data)
            _once(fidelity, key, lambda: measure_fidelity(config.model, adapter, data, fidelity))
    return {"stage": "probe", "forgetting": told(forgetting), **({"fidelity": told(fidelity)} if fidelity else {})}


def told(asked: ForgettingConfig | FidelityConfig) -> JsonObject:
    """What the probe found: the figures of `forgetting.summary` or `fidelity.measure`, or `{unmeasured}`, which says why there are none.
    Figures of another way of serving than is asked for count for nothing."""
    try:
        layout.verify(asked.path)
        found = dict(json.loads((asked.path / RESULT).read_text()))
    except (layout.Corrupt, OSError, ValueError) as error:
        return {UNMEASURED: asked.skipped or f"the probe left no result: {error}"}
    if UNMEASURED not in found and isinstance(asked, FidelityConfig) and found.get("merged") != asked.merged:
        return {UNMEASURED: asked.skipped or "the probe left figures of another model server"}
    return found


@contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """End the process with exit code 1 if the block takes longer, whatever hangs in it, and say where."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _once(asked: ForgettingConfig | FidelityConfig, key: str, figures: Callable[[], JsonObject]) -> None:
    """Leave what is asked for in its folder, unless figures of the same lie there."""
    if layout.is_of(asked.path, key) and UNMEASURED not in told(asked):
        return
    found = _measured(figures)
    gc.collect()
    with layout.transaction(asked.path) as work:
        layout.write_json(work.folder / RESULT, found)
        work.facts.update(key=key)


def _measured(figures: Callable[[], JsonObject]) -> JsonObject:
    try:
        return figures()
    except Exception as error:
        known = exits.classify(error)
        if isinstance(known, Infrastructure | Interrupted):
            raise
        if type(known) is exits.TrainerError:
            traceback.print_exception(error)
        return {UNMEASURED: f"{known.message.rstrip('.')}. {known.fix}".strip()}


def measure(base: Path, tuned: Path, adapter: Path | None, confidence_percent: float, *, quantized: bool = True) -> JsonObject:
    """The figures of `forgetting.summary`: of the model folder `base` against the folder `tuned`, or an adapter upon `base`. Raises
    UserError, OutOfMemory, or Infrastructure and OSError where the volume fails."""
    from finetune_trainer.evaluate import forgetting, general  # torch is loaded here
    from finetune_trainer.evaluate.loss import loss_dtype
    from finetune_trainer.serve.loading import adapt, check, load

    for folder in (base, tuned):
        check(folder)
    _require_room(max(base, tuned, key=weights), 2 if loss_dtype() is None else 4)
    loaded = load(base, None, dtype=loss_dtype())
    texts = general.encoded(loaded.tokenizer, loaded.max_model_len // 2)  # a trained prompt takes some of the room
    said = forgetting.remember(loaded, texts)
    if adapter is not None:
        loaded = adapt(loaded, adapter, quantized=quantized)
    else:
        del loaded
        gc.collect()
        loaded = load(tuned, None, dtype=loss_dtype())
    return forgetting.summary(forgetting.compare(loaded, texts, said), confidence_percent)


def measure_fidelity(model: ModelConfig, adapter: Path | None, data: Path, asked: FidelityConfig) -> JsonObject:
    """The figures of `fidelity.measure`, on the answers of the sealed test split of `data`. Raises as that does."""
    import torch

    from finetune_trainer.evaluate import fidelity
    from finetune_trainer.serve.loading import check

    check(model.path)
    narrow = adapter is not None and torch.cuda.is_available()
    _require_room(model.path, 2 if narrow else 4, 0 if torch.cuda.is_available() else fidelity.KEPT_BYTES)
    return fidelity.measure(model, adapter, test_rows(data), asked)


def _require_room(model: Path, width: int, beside: int = 0) -> None:
    """Raise OutOfMemory for a model of so many bytes a weight that one accelerator, or else this container, has no room for."""
    wanted = weights(model) // 2 * width + RUNTIME_BYTES + beside
    room, where, fix = hardware.memory()
    if room is not None and wanted > room:
        raise OutOfMemory(
            "ModelTooLarge", f"the model takes about {wanted / 2**30:.1f} GiB, and {where} has {room / 2**30:.1f} GiB", fix
        )  # fmt: skip


def weights(model: Path) -> int:
    """Bytes of a folder's weights as 16-bit numbers, whatever they are stored in."""
    from finetune_trainer.train.model import stored_dtype

    return sum(file.stat().st_size for file in _weight_files(model)) * 2 // stored_dtype(model).itemsize


def _weight_files(model: Path) -> list[Path]:
    """What transformers loads of a folder: one file, or those of the index. Others may hold the same weights once more."""
    single, index = model / "model.safetensors", model / "model.safetensors.index.json"
    if not single.is_file() and index.is_file():
        return [model / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    return list(model.glob(single.name))


def _key(how: bool, *folders: Path | None) -> str:
    from finetune_trainer.evaluate import general

    return hashlib.sha256(json.dumps([general.digest(), how, *map(str, folders)]).encode()).hexdigest()
