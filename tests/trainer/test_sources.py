"""Where rows come from: folders, HTTP that breaks off, a real S3 server, a mirror of the hub."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import obstore
import pytest
from finetune_trainer import transfer
from finetune_trainer.config import SourceConfig
from finetune_trainer.data import reading, sources
from finetune_trainer.data.reading import DataFile
from finetune_trainer.data.remote import Downloads
from finetune_trainer.exits import Infrastructure, UserError
from finetune_trainer.transfer import Answer, Broken

from tests.trainer.s3server import S3Server, serving

ROWS = b'{"input": "a", "output": "b"}\n'


def downloads(folder: Path) -> Downloads:
    return Downloads(folder / "cache" / "downloads", folder / "cache" / "records")


def contents(found: list[DataFile]) -> dict[str, bytes]:
    return {file.name: file.path.read_bytes() for file in found}


def test_a_folder_stands_for_its_data_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a/c.csv.gz", "README.md", ".hidden/d.jsonl", "e.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = sources.files(SourceConfig(source="pvc://sets/rows", mount=tmp_path), "train", downloads(tmp_path))
    assert [file.name for file in found] == ["pvc://sets/rows/a/c.csv.gz", "pvc://sets/rows/b.jsonl", "pvc://sets/rows/e.parquet"]


def test_a_folder_without_data_is_the_users(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pvc://sets/rows is a folder without a data file"):
        sources.files(SourceConfig(source="pvc://sets/rows", mount=tmp_path), "train", downloads(tmp_path))


def test_a_scheme_that_nobody_fetches_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="oci:// is not supported yet"):
        sources.files(SourceConfig(source="oci://a/b"), "train", downloads(tmp_path))


def test_files_of_a_data_set_are_told_apart_by_their_names() -> None:
    names = ["hf://a/b/data/train-0.parquet", "hf://a/b/data/validation-0.parquet", "hf://a/b/test.jsonl"]
    found = [DataFile(name, Path(name)) for name in names]
    chosen = {use: [file.name for file in sources.of_split(found, use)] for use in ("train", "mix", "validation", "test")}
    assert chosen == {"train": names[:1], "mix": names[:1], "validation": names[1:2], "test": names[2:]}
    assert sources.of_split(found[:1], "test") == found[:1]  # nothing else is there to choose


class Answers(BaseHTTPRequestHandler):
    """Sends at most 40 bytes an answer, though it announces all; takes ranges under its present version."""

    body = bytes(range(100))
    version = '"v1"'
    token = ""
    asked: list[str]

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        type(self).asked.append(wanted)
        if type(self).token and self.headers.get("Authorization") != f"Bearer {type(self).token}":
            self.send_error(401)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.headers["If-Range"] == type(self).version else 0
        rest = type(self).body[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.send_header("ETag", type(self).version)
        self.end_headers()
        self.wfile.write(rest[:40])
        self.wfile.flush()
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, type[Answers]]]:
    handler = type("Handler", (Answers,), {"asked": []})
    with HTTPServer(("127.0.0.1", 0), handler) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}/rows.jsonl", handler
        found.shutdown()
        thread.join()


def test_a_download_that_breaks_off_goes_on_from_there(server: tuple[str, type[Answers]], tmp_path: Path) -> None:
    address, handler = server
    transfer.transfer("x", transfer.over_http(address), tmp_path / "rows", wait=lambda _: None)
    assert handler.asked == ["", "bytes=40-", "bytes=80-"]
    assert (tmp_path / "rows").read_bytes() == handler.body
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]


def test_a_file_that_changed_meanwhile_begins_anew(server: tuple[str, type[Answers]], tmp_path: Path) -> None:
    address, handler = server
    (tmp_path / "rows.part").write_bytes(b"old" * 10)
    (tmp_path / "rows.version").write_text('30\n"v0"')
    transfer.transfer("x", transfer.over_http(address), tmp_path / "rows", wait=lambda _: None)
    assert handler.asked == ["bytes=30-", "bytes=40-", "bytes=80-"]
    assert (tmp_path / "rows").read_bytes() == handler.body


def test_a_token_is_sent_and_its_absence_is_the_users(server: tuple[str, type[Answers]], tmp_path: Path) -> None:
    address, handler = server
    handler.token = "t"
    with pytest.raises(UserError, match="HTTP 401"):
        transfer.transfer("x", transfer.over_http(address), tmp_path / "rows")
    transfer.transfer("x", transfer.over_http(address, "t"), tmp_path / "rows", wait=lambda _: None)
    assert (tmp_path / "rows").read_bytes() == handler.body


SECRETS = {"a signature": "?sig=sesame", "one with blanks": "? sig=sesame"}


@pytest.mark.parametrize("query", SECRETS.values(), ids=SECRETS)
def test_what_an_address_is_opened_by_is_not_told(query: str, server: tuple[str, type[Answers]], tmp_path: Path) -> None:
    address, handler = server
    handler.token = "t"
    with pytest.raises(UserError) as found:
        transfer.download(address + query, tmp_path / "rows")
    assert address in found.value.message
    assert "sesame" not in found.value.message


def test_a_password_in_an_address_is_not_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"https://h\.example/rows is no address"):
        transfer.download("https://me:sesame@h.example/rows", tmp_path / "rows")


class Redirects(BaseHTTPRequestHandler):
    """Sends on what is asked of `/`; elsewhere it has rows. `seen` is who asked with which token."""

    target: str
    seen: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self.seen.append((f"http://{self.headers['Host']}{self.path}", self.headers["Authorization"]))
        self.send_response(302 if self.path == "/" else 200)
        if self.path == "/":
            self.send_header("Location", self.target)
        self.send_header("Content-Length", "0" if self.path == "/" else str(len(ROWS)))
        self.end_headers()
        if self.path != "/":
            self.wfile.write(ROWS)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(("host", "token"), [("127.0.0.1", "Bearer t"), ("localhost", None)], ids=["its own host", "another host"])
def test_a_token_is_sent_on_to_no_other_host(host: str, token: str | None, tmp_path: Path) -> None:
    handler = type("Handler", (Redirects,), {"seen": []})
    with HTTPServer(("127.0.0.1", 0), handler) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        address, handler.target = f"http://127.0.0.1:{found.server_port}/", f"http://{host}:{found.server_port}/rows"
        try:
            transfer.transfer("x", transfer.over_http(address, "t"), tmp_path / "rows")
        finally:
            found.shutdown()
            thread.join()
    assert handler.seen == [(address, "Bearer t"), (handler.target, token)]
    assert (tmp_path / "rows").read_bytes() == ROWS


def test_it_gives_up_after_so_many_tries_without_a_new_byte(tmp_path: Path) -> None:
    waited: list[float] = []

    def ask(offset: int, version: str) -> Answer:
        if not offset:
            return Answer(0, 100, "v", iter([b"first"]))
        raise Broken("connection refused")

    with pytest.raises(Infrastructure, match="x: connection refused"):
        transfer.transfer("x", ask, tmp_path / "rows", tries=3, wait=waited.append)
    assert waited == [1, 2]
    assert (tmp_path / "rows.part").read_bytes() == b"first"  # the next pod goes on


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    folder = tmp_path_factory.mktemp("buckets")
    (folder / "rows").mkdir()
    with serving(folder) as found:
        for name in ("train/b.jsonl", "train/a.jsonl", "train/notes.md", "empty/notes.md"):
            obstore.put(opened(found), name, ROWS * 1000)
        yield found


def opened(bucket: S3Server) -> Any:
    return sources.s3_store("rows", {name.lower(): value for name, value in bucket.keys.items()})


def secret(folder: Path, keys: dict[str, str]) -> Path:
    folder.mkdir()
    for name, value in keys.items():
        (folder / name).write_text(value + "\n")
    return folder


def test_an_object_and_a_prefix_of_a_bucket_are_read(bucket: S3Server, tmp_path: Path) -> None:
    keys = secret(tmp_path / "keys", bucket.keys)
    one = sources.files(SourceConfig(source="s3://rows/train/a.jsonl", secretMount=keys), "train", downloads(tmp_path))
    assert contents(one) == {"s3://rows/train/a.jsonl": ROWS * 1000}
    found = sources.files(SourceConfig(source="s3://rows/train/", secretMount=keys), "train", downloads(tmp_path))
    assert contents(found) == {f"s3://rows/train/{name}.jsonl": ROWS * 1000 for name in ("a", "b")}
    assert len(list(reading.read(found[0]))) == 1000


def test_keys_may_come_from_the_environment(bucket: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in bucket.keys.items():
        monkeypatch.setenv(name, value)
    assert sources.files(SourceConfig(source="s3://rows/train/a.jsonl"), "train", downloads(tmp_path))


@pytest.mark.parametrize(("version", "first"), [("now", b"half"), ("before", ROWS[:4])])
def test_an_object_goes_on_where_it_broke_off_unless_it_changed(version: str, first: bytes, bucket: S3Server, tmp_path: Path) -> None:
    store = opened(bucket)
    tag = obstore.head(store, "train/a.jsonl")["e_tag"]
    (tmp_path / "x.part").write_bytes(b"half")
    (tmp_path / "x.version").write_text(f"4\n{tag}" if version == "now" else '4\n"another"')
    transfer.transfer("x", sources._over_s3("x", store, "train/a.jsonl"), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == first + (ROWS * 1000)[4:]


REFUSED: dict[str, tuple[str, dict[str, str], str]] = {
    "there is no such object": ("s3://rows/none.jsonl", {}, "specified key does not exist"),
    "there is no such bucket": ("s3://nobody/x.jsonl", {}, "specified bucket does not exist"),
    "no data file is under the prefix": ("s3://rows/empty/", {}, "no data file is there"),
    "the key is wrong": ("s3://rows/train/a.jsonl", {"AWS_SECRET_ACCESS_KEY": "another"}, "signature"),
    "a key has no known name": ("s3://rows/train/a.jsonl", {"AWS_PASSWORD": "x"}, "the Secret has a key that is none of S3's"),
}


@pytest.mark.parametrize(("source", "keys", "words"), REFUSED.values(), ids=REFUSED)
def test_a_bucket_is_the_users_mistake_where(source: str, keys: dict[str, str], words: str, bucket: S3Server, tmp_path: Path) -> None:
    folder = secret(tmp_path / "keys", {**bucket.keys, **keys})
    with pytest.raises(UserError, match=words):
        sources.files(SourceConfig(source=source, secretMount=folder), "train", downloads(tmp_path))


def mirror(folder: Path) -> Path:
    """A data set in the hub's own cache layout."""
    snapshot = folder / "datasets--owner--name" / "snapshots" / ("0" * 40)
    for name in ("data/train-00000.jsonl", "data/test-00000.jsonl", "README.md"):
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_bytes(ROWS)
    (folder / "datasets--owner--name" / "refs").mkdir()
    (folder / "datasets--owner--name" / "refs" / "main").write_text("0" * 40)
    return folder


HUB = {
    "the split's files": ("hf://owner/name", "train", ["hf://owner/name/data/train-00000.jsonl"]),
    "the test split's files": ("hf://owner/name", "test", ["hf://owner/name/data/test-00000.jsonl"]),
    "one named file": ("hf://owner/name@main/data/test-00000.jsonl", "train", ["hf://owner/name@main/data/test-00000.jsonl"]),
}


@pytest.mark.parametrize(("source", "use", "names"), HUB.values(), ids=HUB)
def test_a_mirror_of_the_hub_gives(source: str, use: str, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(mirror(tmp_path / "hub")))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = sources.files(SourceConfig(source=source), use, downloads(tmp_path))
    assert contents(found) == dict.fromkeys(names, ROWS)


def test_a_data_set_that_the_mirror_lacks_is_infrastructure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(mirror(tmp_path / "hub")))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Infrastructure, match="hf://owner/other"):
        sources.files(SourceConfig(source="hf://owner/other"), "train", downloads(tmp_path))
