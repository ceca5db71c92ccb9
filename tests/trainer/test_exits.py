"""Every way out has a class, and its message fits where it goes."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from finetune_trainer import exits, hardware
from finetune_trainer.config import RunConfig
from finetune_trainer.train import launch


class DistBackendError(RuntimeError):
    """Stands for torch's error of that kind."""


class DistError(RuntimeError):
    """Stands for the base of torch.distributed's errors."""


CLASSES: dict[str, tuple[BaseException, int, str]] = {
    "a full disk": (OSError(errno.ENOSPC, "No space left on device"), 24, "DiskFull"),
    "a full disk, told by safetensors": (RuntimeError("I/O error: No space left on device (os error 28)"), 24, "DiskFull"),
    "a volume that became read-only": (OSError(errno.EROFS, "Read-only file system"), 24, "VolumeReadOnly"),
    "a disk's error, told by safetensors": (RuntimeError("I/O error: Input/output error (os error 5)"), 24, "VolumeError"),
    "a full disk, told by a library in C++": (RuntimeError("write failed: No space left on device"), 24, "DiskFull"),
    "a number of Rust's that is none of a volume's": (RuntimeError("Invalid argument (os error 22)"), 1, "RuntimeError"),
    "a stale file handle": (OSError(errno.ESTALE, "Stale file handle"), 24, "VolumeError"),
    "gloo's peer that went": (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.1]:1234"), 24, "PeerLost"),
    "torch's own distributed errors": (DistError("timeout"), 24, "PeerLost"),
    "memory of the host": (MemoryError(), 21, "OutOfMemory"),
    "memory of the host, told by torch": (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 21, "OutOfMemory"),
    "memory of a GPU, told by its libraries": (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling x"), 21, "OutOfMemory"),
    "memory of a GPU": (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 21, "OutOfMemory"),
    "an error of ours": (exits.NonFinite("NonFiniteLoss", "nan"), 23, "NonFiniteLoss"),
    "a key that is not there": (KeyError("x"), 1, "KeyError"),
    "an error without words": (ValueError(), 1, "ValueError"),
}


@pytest.mark.parametrize(("error", "code", "reason"), CLASSES.values(), ids=CLASSES)
def test_errors_are_classified(error: BaseException, code: int, reason: str) -> None:
    known = exits.classify(error)
    assert (known.code, known.reason) == (code, reason)
    assert known.message


def test_an_error_without_a_path_says_what_was_being_done() -> None:
    def fail() -> None:
        with exits.about("while /work/x was written"):
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output") as found:
        fail()
    assert exits.classify(found.value).message == "[Errno 5] Input/output error (while /work/x was written)"


def test_what_mends_a_lack_of_memory_names_the_apis_fields_and_the_sizes_in_use() -> None:
    fix = exits.classify(MemoryError()).fix
    assert "microBatchTokens" not in fix
    sizes = (str(hardware.CPU_MICRO_BATCH_TOKENS), str(hardware.GPU_MICRO_BATCH_TOKENS))
    assert all(named in fix for named in ("compute.memory", "training.maxSequenceLength", *sizes))


def test_classes_and_codes_are_those_of_the_contract() -> None:
    assert {code: kind.failure_class for code, kind in exits.BY_CODE.items()} == {
        1: "error", 20: "user", 21: "outOfMemory", 22: "stalled", 23: "nonFinite", 24: "infrastructure", 25: "interrupted",
    }  # fmt: skip


def test_a_wrong_configuration_names_the_field() -> None:
    with pytest.raises(ValueError, match="learnRate") as found:
        RunConfig.model_validate({"version": 1, "stage": "train", "training": {"learnRate": 1}})
    known = exits.classify(found.value)
    assert (known.code, known.reason) == (20, "ConfigurationInvalid")
    assert "training.learnRate: Extra inputs are not permitted" in known.message
    assert "finetune: Field required" in known.message


SIZES = {
    "a long message": {"stage": "train", "error": {"message": "x" * 9000}},
    "many rows": {"stage": "prepare", "invalid": [{"source": "s" * 300, "row": n, "reason": "r" * 300} for n in range(200)]},
    "letters of several bytes": {"stage": "prepare", "warnings": ["ü" * 3000, "漢" * 3000]},
    "half of a surrogate pair": {"stage": "prepare", "error": {"message": "fields found: a\ud800"}},
    "numbers that JSON lacks": {"stage": "train", "loss": float("nan"), "best": float("inf")},
}


@pytest.mark.parametrize("result", SIZES.values(), ids=SIZES)
def test_a_termination_message_is_json_of_at_most_4_kib(result: exits.JsonObject) -> None:
    text = exits.shrink(result)
    assert len(text.encode()) <= 4096
    assert json.loads(text)["stage"] == result["stage"]


class ChildFailedError(Exception):
    """Stands for the launcher's."""

    def __init__(self) -> None:
        self.failures: dict[int, object] = {}


FIRST = {"memory ran out": (True, 21, "OutOfMemory"), "something else": (False, 24, "PeerLost")}


@pytest.mark.parametrize(("killed", "code", "reason"), FIRST.values(), ids=FIRST)
def test_a_rank_that_lost_its_peer_is_no_cause_where(
    killed: bool, code: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setenv(exits.TERMINATION_LOG, str(tmp_path / "termination"))
    monkeypatch.setattr(hardware, "killed_for_memory", lambda: killed)
    outcome = {"code": 24, "time": 1.0, "message": {"stage": "train", "error": {"class": "infrastructure", "reason": "PeerLost"}}}
    (tmp_path / "rank-0.json").write_text(json.dumps(outcome))
    with pytest.raises(SystemExit) as found:
        launch.conclude(tmp_path, ChildFailedError())
    assert found.value.code == code
    assert json.loads((tmp_path / "termination").read_text())["error"]["reason"] == reason
