"""Stages fetch and prepare, run in this process on folders and files."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
import socket
import tarfile
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from finetune_trainer import fetch, layout, transfer
from finetune_trainer.config import ModelConfig, RunConfig
from finetune_trainer.data import arrays, loading, prepare, reading
from finetune_trainer.data.templates import ChatEncoder
from finetune_trainer.exits import Infrastructure, Interrupted, UserError, classify
from finetune_trainer.serve import loading as serving_loading

from tests.trainer.support import EXAMPLES, make_config, rows, write_rows


def model_config(source: Path, target: Path, **more: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "version": 1, "stage": "fetch", "finetune": {"namespace": "ml", "name": "bot", "revision": "r"},
            "model": {"source": f"image://{source}", "path": str(target), **more},
        }
    )  # fmt: skip


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "source"))


def test_a_model_is_fetched_once_and_verified_afterwards(copy: Path, tmp_path: Path) -> None:
    first = fetch.main(model_config(copy, tmp_path / "models" / "x"))
    assert (first["family"], first["files"]) == ("llama", 6)
    before = (tmp_path / "models" / "x" / "COMMIT").stat().st_ino
    shutil.rmtree(copy)
    assert fetch.main(model_config(copy, tmp_path / "models" / "x")) == first
    assert (tmp_path / "models" / "x" / "COMMIT").stat().st_ino == before


def test_a_model_folder_that_was_damaged_is_fetched_again(copy: Path, tmp_path: Path) -> None:
    first = fetch.main(model_config(copy, tmp_path / "x"))
    (tmp_path / "x" / "config.json").write_text("{}")
    assert fetch.main(model_config(copy, tmp_path / "x")) == first
    assert layout.verify(tmp_path / "x")["digest"] == first["digest"]


def calls_with_another_run_within(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, another: threading.Thread
) -> list[tuple[Any, ...]]:
    """The calls of `module.name`; the first one starts `another` and goes on once that says that it waits for the lock."""
    calls: list[tuple[Any, ...]] = []
    waits, real = threading.Event(), getattr(module, name)

    def call(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            another.start()
            waits.wait(2)
        return real(*arguments)

    monkeypatch.setattr(layout, "print", lambda *words, **options: waits.set(), raising=False)
    monkeypatch.setattr(module, name, call)
    return calls


def test_two_fetches_of_one_model_at_once_copy_it_once(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = model_config(copy, tmp_path / "models" / "x")
    results: list[Any] = []
    second = threading.Thread(target=lambda: results.append(fetch.main(config)))
    copies = calls_with_another_run_within(monkeypatch, fetch, "copy_model", second)
    first = fetch.main(config)
    second.join()
    assert results == [first]
    assert len(copies) == 1
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["x"]


def test_a_source_that_changes_while_it_is_copied_is_infrastructure(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch.shutil, "copyfile", lambda source, target: Path(target).write_text("half"))
    with pytest.raises(Infrastructure, match="changed while it was copied"):
        fetch.main(model_config(copy, tmp_path / "models" / "x"))
    assert list((tmp_path / "models").iterdir()) == []


LOST = Infrastructure("DownloadFailed", "the network is away")
ENDS: dict[str, tuple[BaseException | None, bool]] = {  # how a try ends → does what it has downloaded stay for the next one?
    "it is complete": (None, False),
    "the network fails": (LOST, True),
    "it is stopped": (Interrupted("Interrupted", "stopped by SIGTERM"), True),
    "the disk is full": (Infrastructure("DiskFull", "no room"), False),
    "it is no model": (UserError("ModelInvalid", "no config.json", "Point elsewhere."), False),
}


@pytest.mark.parametrize("case", ENDS)
def test_what_a_try_has_downloaded_stays_where_the_next_one_can_go_on(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends, stays = ENDS[case]
    kept, other, busy = (tmp_path / f".{name}.download" / "half" for name in "xyz")
    for left in (kept, other, busy):
        left.parent.mkdir()
        left.touch()
    monkeypatch.setattr(fetch, "download_hub", lambda name, model, scratch: scratch)
    again = fetch.opened(ModelConfig(source="hf://a/b", path=tmp_path / "x"))
    with layout.locked(tmp_path / "z"), nullcontext() if ends is None else pytest.raises(type(ends)), again as folder:
        assert (list(folder.iterdir()), other.exists(), busy.exists()) == ([kept], False, True)
        if ends:
            raise ends
    assert kept.exists() is stays


def git_name(body: bytes) -> str:
    return hashlib.sha1(f"blob {len(body)}\0".encode() + body, usedforsecurity=False).hexdigest()


class ModelHub(BaseHTTPRequestHandler):
    """A hub with one model, as huggingface_hub asks for it; the connection for the file `broken` is lost, the file `short` ends early."""

    commit = "1" * 40
    files: dict[str, bytes]
    broken: str
    short: str
    sent: list[str]

    def do_HEAD(self) -> None:
        self._answer(self._body(), body=False)

    def do_GET(self) -> None:
        if self.path.startswith("/api/"):
            entries = [{"type": "file", "path": name, "size": len(body), "oid": git_name(body)} for name, body in self.files.items()]
            model = {"id": "owner/name", "sha": self.commit, "siblings": [{"rfilename": n} for n in self.files], "tags": [], "downloads": 0}
            self._answer(json.dumps(entries if "/tree/" in self.path else model).encode())
            return
        name = self.path.rpartition("/")[2]
        self.sent.append(name)
        self._answer(self._body()[: -1 if name == self.short else None])

    def _body(self) -> bytes:
        return self.files[self.path.rpartition("/")[2]]

    def _answer(self, content: bytes, *, body: bool = True) -> None:
        self.send_response(200)
        self.send_header("X-Repo-Commit", self.commit)
        large = self.path.endswith(".safetensors")
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest() if large else git_name(content)}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def model_hub(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[ModelHub]]:
    import httpx2
    from huggingface_hub import file_download

    files = {path.name: path.read_bytes() for path in tiny_model.iterdir() if path.is_file()}
    found = type("OneModelHub", (ModelHub,), {"files": files, "broken": "model.safetensors", "short": "", "sent": []})
    real = file_download.http_get

    def get(url: str, *arguments: Any, **options: Any) -> None:
        real(url, *arguments, **options)
        if url.endswith(found.broken):
            raise httpx2.RemoteProtocolError("peer closed connection without sending complete message body")

    monkeypatch.setattr(file_download, "http_get", get)
    with ThreadingHTTPServer(("127.0.0.1", 0), found) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield found
        server.shutdown()
        thread.join()


def hub_config(target: Path) -> RunConfig:
    config = model_config(Path("/x"), target)
    return config.model_copy(update={"model": ModelConfig(source="hf://owner/name", path=target)})


def test_a_fetch_from_the_hub_goes_on_where_it_stopped(model_hub: type[ModelHub], tmp_path: Path) -> None:
    target = tmp_path / "models" / "x"
    with pytest.raises(Infrastructure, match="owner/name"):
        fetch.main(hub_config(target))
    first, scratch = set(model_hub.sent), tmp_path / "models" / ".x.download"
    small = sorted(name for name in model_hub.files if name != "model.safetensors")
    assert sorted(path.name for path in scratch.iterdir() if path.is_file()) == small
    assert first == set(model_hub.files)
    (scratch / "config.json").write_bytes(b"{}" + b" " * (len(model_hub.files["config.json"]) - 2))  # a power cut may do so
    model_hub.broken, model_hub.sent[:] = "nothing", []
    found = fetch.main(hub_config(target))
    assert sorted(model_hub.sent) == ["config.json", "model.safetensors"]
    assert {path.name: path.read_bytes() for path in target.iterdir() if path.name in model_hub.files} == model_hub.files
    assert found["files"] == len(model_hub.files)
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["x"]


def test_a_file_that_a_proxy_cut_off_costs_no_other(model_hub: type[ModelHub], tmp_path: Path) -> None:
    """The hub's client says that it failed its consistency check, as an OSError like those of a volume."""
    model_hub.broken, model_hub.short = "nothing", "model.safetensors"
    with pytest.raises(Infrastructure, match=r"owner/name: Consistency check failed: .*/model.safetensors") as found:
        fetch.main(hub_config(tmp_path / "x"))
    assert found.value.reason == "DownloadFailed"
    model_hub.short, model_hub.sent[:] = "", []
    fetch.main(hub_config(tmp_path / "x"))
    assert model_hub.sent == ["model.safetensors"]


def test_what_a_branch_had_when_a_fetch_was_stopped_and_has_no_more_is_not_taken_over(model_hub: type[ModelHub], tmp_path: Path) -> None:
    model_hub.files["old.json"] = b"{}"
    with pytest.raises(Infrastructure, match="owner/name"):
        fetch.main(hub_config(tmp_path / "x"))
    assert (tmp_path / ".x.download" / "old.json").exists()
    del model_hub.files["old.json"]
    model_hub.commit, model_hub.broken, model_hub.sent[:] = "2" * 40, "nothing", []
    fetch.main(hub_config(tmp_path / "x"))
    assert model_hub.sent == ["model.safetensors"], "what is the same in both is not downloaded again"
    assert not (tmp_path / "x" / "old.json").exists()


def test_an_archive_that_came_whole_is_not_downloaded_again(tmp_path: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pod was killed while it was unpacked."""
    scratch = tmp_path / ".x.download"
    (scratch / "files" / "half").mkdir(parents=True)
    with tarfile.open(scratch / "archive", "w") as tar:
        tar.add(copy, "model")
    monkeypatch.setattr(fetch, "download", lambda *_: pytest.fail("it is there"))
    digest = layout.sha256_file(scratch / "archive")
    with fetch.opened(ModelConfig(source="https://h.example/x.tar", path=tmp_path / "x", revision=f"sha256:{digest}")) as folder:
        assert folder == scratch / "files" / "model"
        assert not (scratch / "files" / "half").exists()


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_an_archive_that_was_packed_in_part_is_refused_by_its_name(kind: Any, tmp_path: Path, copy: Path) -> None:
    """Its sha256 is what the FineTune says."""
    archive = tmp_path / "archive"
    with tarfile.open(archive, f"w:{kind}") as tar:
        tar.add(copy, "model")
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(UserError, match=r"https://h\.example/x\.tar is not a safe and whole tar archive: "):
        fetch.download_archive(
            ModelConfig(source="https://h.example/x.tar", path=tmp_path / "x", revision=layout.sha256_file(archive)), tmp_path
        )


BODIES = {
    "ends early": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
    "ends within a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nhalf",
    "is no HTTP": b"nonsense\r\n\r\n",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_download_is_infrastructure_that(body: bytes, tmp_path: Path) -> None:
    def answer() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(body)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(Infrastructure) as found:
            transfer.download(f"http://127.0.0.1:{server.getsockname()[1]}/x", tmp_path / "x", tries=1)
        thread.join()
    assert found.value.reason == "DownloadFailed"


def hub_errors() -> dict[str, Exception]:
    import httpx2
    from huggingface_hub.errors import FileMetadataError, LocalEntryNotFoundError, XetDownloadError

    return {
        "does not answer": LocalEntryNotFoundError("an error happened while trying to locate the files on the Hub"),
        "has no name": httpx2.ConnectError("Name or service not known"),
        "ends early": httpx2.RemoteProtocolError("peer closed connection without sending complete message body"),
        "is refused": ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        "loses a part": XetDownloadError("reconstruction failed"),
        "says too little of a file": FileMetadataError("no ETag"),
    }


@pytest.mark.parametrize(
    "case", ["does not answer", "has no name", "ends early", "is refused", "loses a part", "says too little of a file"]
)
def test_a_hub_is_infrastructure_that(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise hub_errors()[case]

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(Infrastructure) as found:
        fetch.download_hub("a/b", ModelConfig(source="hf://a/b", path=tmp_path / "x"), tmp_path)
    assert found.value.reason == "DownloadFailed"


def test_a_full_volume_is_no_failure_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(OSError, match="No space left"):
        fetch.download_hub("a/b", ModelConfig(source="hf://a/b", path=tmp_path / "x"), tmp_path)


def spoil_pickled(source: Path) -> None:
    (source / "model.safetensors").rename(source / "pytorch_model.bin")


def spoil_config(source: Path, **changes: object) -> None:
    settings = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**settings, **changes}))


def spoil_remote(source: Path) -> None:
    spoil_config(source, auto_map={"AutoModel": "x.Y"})


def spoil_tokenizer(source: Path) -> None:
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps({**settings, "auto_map": {"AutoTokenizer": ["x.Y", None]}}))


def spoil_shards(source: Path, weight_map: object = None) -> None:
    (source / "model.safetensors").rename(source / "model-00001-of-00002.safetensors")
    listed = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"} if weight_map is None else weight_map
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))


def spoil_weights(source: Path) -> None:
    content = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(content[: len(content) // 2])


REFUSED = {
    "lacks weights that it lists": (spoil_shards, "has no model-00002-of-00002.safetensors: its weights are not all there"),
    "lists no weights": (lambda source: spoil_shards(source, 7), "has no weight_map in model.safetensors.index.json"),
    "has weights by another name": (lambda source: (source / "model.safetensors").rename(source / "x.safetensors"), "has no model.safe"),
    "has weights that are cut off": (spoil_weights, r"source/model\.safetensors is damaged or cut off"),
    "has a name for its weights": (
        lambda source: (source / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"), "is damaged or cut off",
    ),
    "is not there": (shutil.rmtree, "there is no folder"),
    "has no configuration": (lambda source: (source / "config.json").unlink(), "has no config.json"),
    "has pickled weights alone": (spoil_pickled, r"only pickled weights \(pytorch_model.bin\)"),
    "wants to run its own code": (spoil_remote, r"brings its own Python code \(config.json of"),
    "has a tokenizer that wants to": (spoil_tokenizer, r"brings its own Python code \(tokenizer_config.json of"),
    "fills gaps": (lambda source: spoil_config(source, architectures=["BertForMaskedLM"]), "is a BertForMaskedLM .* does not write"),
    "translates": (
        lambda source: spoil_config(source, architectures=["T5ForConditionalGeneration"], is_encoder_decoder=True),
        "is a T5ForConditionalGeneration .* does not write",
    ),
    "sorts": (lambda source: spoil_config(source, architectures=["LlamaForSequenceClassification"]), "does not write text"),
    "was quantised": (
        lambda source: spoil_config(source, quantization_config={"quant_method": "fp8"}), r"quantised already \(fp8; quantization_config",
    ),
    "was quantised where it writes": (
        lambda source: spoil_config(source, text_config={"quantization_config": {"quant_method": "awq"}}), r"quantised already \(awq",
    ),
    "is cut off": (lambda source: (source / "config.json").write_text('{"model_type":'), "config.json is not JSON"),
    "is something else": (lambda source: (source / "config.json").write_text("[]"), "config.json is no JSON object"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "words"), REFUSED.values(), ids=REFUSED)
def test_a_model_is_refused_that(spoil: Any, words: str, copy: Path, tmp_path: Path) -> None:
    spoil(copy)
    with pytest.raises(UserError, match=words) as found:
        fetch.main(model_config(copy, tmp_path / "models" / "x"))
    assert found.value.fix
    assert not (tmp_path / "models" / "x").exists()


def test_code_and_hidden_files_do_not_come_along(copy: Path, tmp_path: Path) -> None:
    for name in ("model.py", ".secret.json", "old.bin"):
        (copy / name).write_text("x")
    fetch.main(model_config(copy, tmp_path / "x"))
    assert not {"model.py", ".secret.json", "old.bin"} & {path.name for path in (tmp_path / "x").iterdir()}


def test_a_source_that_is_not_built_yet_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="oci:// is not supported yet"), fetch.opened(ModelConfig(source="oci://a/b", path=tmp_path / "x")):
        pass


def prepared(work: Path, tmp_path: Path, tiny_model: Path, values: list[Any], **overrides: Any) -> tuple[Path, dict[str, Any]]:
    source = write_rows(tmp_path / "rows.jsonl", values)
    overrides = {"model__path": str(work / "models" / "tiny"), **overrides}
    document = make_config("prepare", tmp_path, tiny_model, source, **overrides)
    return Path(document["data"]["path"]), dict(prepare.main(RunConfig.model_validate(document)))


def test_no_test_row_is_in_a_file_that_training_reads(work: Path, tmp_path: Path, tiny_model: Path) -> None:
    values = [*rows(), *rows(20)]
    folder, result = prepared(work, tmp_path, tiny_model, values)
    assert result["rows"] == {
        "read": 84,
        "invalid": 0,
        "duplicate": 20,
        "nearDuplicate": 0,
        "tooLong": 0,
        "train": 52,
        "validation": 4,
        "test": 8,
    }
    sealed = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    hashes = (folder / "train-hashes.txt").read_text().split()
    assert len(set(hashes)) == 52
    assert not {row["id"] for row in sealed} & set(hashes)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(work / "models" / "tiny")
    for split in ("train", "validation"):
        data = arrays.load(folder, split)
        texts = [tokenizer.decode(data.row(index)[0]) for index in range(len(data))]
        assert not any(row["reference"] in text and row["messages"][-1]["content"] in text for row in sealed for text in texts)


def test_the_same_rows_give_the_same_bytes(work: Path, tmp_path: Path, tiny_model: Path) -> None:
    digests = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        digests.append(prepared(work, tmp_path / name, tiny_model, rows())[1]["digest"])
    assert digests[0] == digests[1]


def test_bad_rows_up_to_the_limit_are_dropped_and_told_by_number(work: Path, tmp_path: Path, tiny_model: Path) -> None:
    values: list[Any] = [*rows()[:30], "{broken", *rows()[30:], {"instruction": "Say nothing.", "output": ""}]
    _, result = prepared(work, tmp_path, tiny_model, values, data__quality={"maxInvalidPercent": 5})
    assert result["rows"]["invalid"] == 2
    assert [(item["row"], item["reason"].partition(":")[0]) for item in result["invalid"]] == [
        (31, "not JSON"), (66, "turn 2 (assistant) is empty"),
    ]  # fmt: skip


def test_more_bad_rows_than_the_limit_stop_before_training(work: Path, tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(UserError, match=r"4 of 68 rows \(5.9 %\) are invalid, more than maxInvalidPercent 5: .* row 65: ") as found:
        prepared(work, tmp_path, tiny_model, [*rows(), *["{broken"] * 4])
    assert found.value.fix == "Correct the rows, or raise data.quality.maxInvalidPercent."
    assert not (tmp_path / "data" / "1f2e3d4c").exists()


LONG = [{"instruction": "Go on.", "output": " ".join(f"word{n}" for n in range(200))}]
TOO_LONG = {"Drop": (1, 52), "Truncate": (1, 53)}


@pytest.mark.parametrize(("policy", "expected"), TOO_LONG.items(), ids=TOO_LONG)
def test_rows_that_are_too_long(policy: str, expected: tuple[int, int], work: Path, tmp_path: Path, tiny_model: Path) -> None:
    folder, result = prepared(work, tmp_path, tiny_model, rows() + LONG, data__quality={"onTooLong": policy})
    assert (result["rows"]["tooLong"], result["rows"]["train"] + result["rows"]["test"] + result["rows"]["validation"] - 12) == expected
    assert int(np.max(arrays.load(folder, "train").lengths)) <= 256


def test_a_row_that_is_too_long_fails_where_that_is_asked_for(work: Path, tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(
        UserError, match=r"row 65 of configmap://rows/train\.jsonl has [\d,]+ tokens, more than training\.maxSequenceLength 256"
    ):
        prepared(work, tmp_path, tiny_model, rows() + LONG, data__quality={"onTooLong": "Fail"})


HUGE = [{"instruction": "Go on.", "output": " ".join(f"word{n:04}" for n in range(1000))}]
MANY = r"9,005 characters, more than 32 for each token of training\.maxSequenceLength 256"


def test_a_row_that_no_tokenizer_makes_short_enough_is_left_out_unread(
    work: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A megabyte of text takes a third of a gigabyte while it is encoded."""
    real, most = ChatEncoder.encode_all, []

    def encode_all(self: ChatEncoder, given: Any, **options: Any) -> Any:
        most.append(max((len(row.response) for row in given), default=0))
        return real(self, given, **options)

    monkeypatch.setattr(ChatEncoder, "encode_all", encode_all)
    for name in "abc":
        (tmp_path / name).mkdir()
    folder, result = prepared(work, tmp_path / "a", tiny_model, rows() + HUGE)
    assert max(most) < 100
    assert (result["rows"]["tooLong"], sum(result["rows"][name] for name in ("train", "validation", "test"))) == (1, 64)
    [left_out] = json.loads((folder / "report.json").read_text())["leftOut"]
    assert re.search(f"the row is too long: {MANY}", json.dumps(left_out))
    with pytest.raises(UserError, match=rf"row 65 of configmap://rows/train\.jsonl has {MANY}"):
        prepared(work, tmp_path / "b", tiny_model, rows() + HUGE, data__quality={"onTooLong": "Fail"})
    assert max(most) < 100
    _, result = prepared(work, tmp_path / "c", tiny_model, rows() + HUGE, data__quality={"onTooLong": "Truncate"})
    assert max(most) > 8000, "what is cut off has to be encoded"
    assert (result["rows"]["tooLong"], sum(result["rows"][name] for name in ("train", "validation", "test"))) == (1, 65)


def test_an_incomplete_model_is_infrastructure(tmp_path: Path, tiny_model: Path, work: Path) -> None:
    with pytest.raises(Infrastructure, match="is not a complete model folder"):
        prepared(work, tmp_path, tiny_model, rows(), model__path=str(tmp_path))


def test_two_preparations_at_once_write_once(work: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = make_config("prepare", tmp_path, tiny_model, write_rows(tmp_path / "rows.jsonl", rows()))
    document["model"]["path"] = str(work / "models" / "tiny")
    config = RunConfig.model_validate(document)
    results: list[Any] = []
    second = threading.Thread(target=lambda: results.append(prepare.main(config)))
    written = calls_with_another_run_within(monkeypatch, loading, "load", second)
    first = prepare.main(config)
    second.join()
    assert results == [first]
    assert len(written) == 1


VOLUME = {"an I/O error": errno.EIO, "a stale handle": errno.ESTALE, "no access": errno.EACCES}


@pytest.mark.parametrize("number", VOLUME.values(), ids=VOLUME)
def test_a_source_on_a_volume_that_fails_is_no_users_mistake(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(number, "failed")

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(OSError, match="failed") as found:
        list(reading.read(reading.DataFile("pvc://rows/train.jsonl", tmp_path / "rows.jsonl")))
    assert classify(found.value).code == 24


@pytest.mark.parametrize("look", [reading.sha256, lambda file: list(reading.read(file))], ids=["hashed", "read"])
def test_a_source_that_is_not_there_is_the_users_mistake(look: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data source pvc://rows/train\.jsonl: No such file"):
        look(reading.DataFile("pvc://rows/train.jsonl", tmp_path / "rows.jsonl"))


def fail_on_the_volume(*arguments: Any, **options: Any) -> None:
    """As transformers tells it: its own OSError without a number, raised from the volume's."""
    try:
        raise OSError(errno.EIO, "Input/output error")
    except OSError as error:
        raise OSError("Can't load tokenizer") from error


@pytest.mark.parametrize("stage", ["prepare", "serve"])
def test_a_tokenizer_on_a_volume_that_fails_is_no_users_mistake(stage: str, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", fail_on_the_volume)
    folder = work / "models" / "tiny"
    with pytest.raises(OSError, match="Input/output error") as found:
        prepare.load_tokenizer(folder, False) if stage == "prepare" else serving_loading.load(folder, None)
    assert classify(found.value).reason == "VolumeError"


EXAMPLE_FILES = {
    "support-labels/train.jsonl": (1, "SFT"),
    "text-to-sql/questions.jsonl": (10, "SFT"),
    "support-tone/train.jsonl": (10, "DPO"),
}


@pytest.mark.parametrize(("name", "expected"), EXAMPLE_FILES.items(), ids=EXAMPLE_FILES)
def test_the_examples_are_prepared_without_a_complaint(
    name: str, expected: tuple[int, str], work: Path, tmp_path: Path, tiny_model: Path
) -> None:  # fmt: skip
    values = (EXAMPLES / name).read_text().splitlines()
    folder, result = prepared(
        work,
        tmp_path,
        tiny_model,
        list(values),
        training__maxSequenceLength=1024,
        data__quality={"minResponseCharacters": None},
        method__objective=expected[1],
    )
    assert (result["rows"]["invalid"], result["minResponseCharacters"]) == (0, expected[0])
    assert result["rows"]["test"] >= 30
    assert layout.is_complete(folder)
    assert "<html" in (folder / "report.html").read_text()
