"""Remote data are brought once: what a server's name for a version stood for is known, and a change is noticed.

Servers here count the bytes that they really send.
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate, parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import obstore
import pytest
from finetune_trainer.config import RunConfig, SourceConfig
from finetune_trainer.data import loading, prepare, sources
from finetune_trainer.data.reading import DataFile
from finetune_trainer.data.remote import Downloads
from finetune_trainer.exits import Infrastructure, Interrupted

from tests.trainer.s3server import serving
from tests.trainer.support import make_config, rows, write_rows

OLD = 1_700_000_000.0


class Server(BaseHTTPRequestHandler):
    """Serves one file. `names` says which headers name its version."""

    protocol_version = "HTTP/1.1"
    body: bytes
    names: tuple[str, ...]
    changed: float
    conditions: bool
    sent: int

    def do_GET(self) -> None:
        named = {"ETag": f'"{hashlib.sha256(self.body).hexdigest()}"', "Last-Modified": formatdate(self.changed, usegmt=True)}
        named = {name: value for name, value in named.items() if name in self.names}
        same = self.conditions and self._same(named)
        self.send_response(304 if same else 200)
        for name, value in named.items():
            self.send_header(name, value)
        if not same:
            self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        if not same:
            with suppress(ConnectionError):
                self._send()

    def _same(self, named: dict[str, str]) -> bool:
        """What RFC 9110 makes of the conditions: a tag goes before a date, and every date that is not later will do."""
        if tag := self.headers["If-None-Match"]:
            return tag == named.get("ETag")
        since = self.headers["If-Modified-Since"]
        return bool(since and "Last-Modified" in named and self.changed <= parsedate_to_datetime(since).timestamp())

    def _send(self) -> None:
        for start in range(0, len(self.body), 65536):
            self.wfile.write(self.body[start : start + 65536])
            type(self).sent += len(self.body[start : start + 65536])

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def http(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Server]]]:
    monkeypatch.setitem(sources._REMOTE, "http", sources._https)  # type: ignore[index]
    body = write_rows(tmp_path / "served", rows()).read_bytes()
    handler = type("Handler", (Server,), {"body": body, "names": ("ETag",), "changed": OLD, "conditions": True, "sent": 0})
    with http(handler) as address:
        yield f"{address}/rows.jsonl", handler


def configuration(work: Path, folder: Path, model: Path, source: dict[str, Any], revision: str = "1f2e3d4c", **more: Any) -> RunConfig:
    document = make_config("prepare", folder, model, **{"model__path": str(work / "models" / "tiny"), "data__train": source, **more})
    document["data"]["path"] = str(folder / "data" / revision)
    return RunConfig.model_validate(document)


@pytest.fixture
def run(work: Path, tmp_path: Path, tiny_model: Path) -> Any:
    """Prepare a revision of these data; its result."""

    def prepared(source: str, revision: str, secret: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
        config = configuration(work, tmp_path, tiny_model, {"source": source, "mount": None, **(secret or {})}, revision, **more)
        return dict(prepare.main(config))

    return prepared


def downloads(folder: Path) -> Downloads:
    return Downloads(folder / "downloads", folder / "records")


def test_a_second_revision_of_the_same_data_brings_nothing(run: Any, web: tuple[str, type[Server]], tmp_path: Path) -> None:
    address, server = web
    first = run(address, "1f2e3d4c")
    assert server.sent == len(server.body)
    assert run(address, "2b2b2b2b", training__epochs=7)["digest"] == first["digest"]
    assert server.sent == len(server.body)
    assert list((tmp_path / "data" / "cache" / "downloads").iterdir()) == []


def test_what_has_an_etag_is_not_sent_again(run: Any, web: tuple[str, type[Server]]) -> None:
    address, server = web
    run(address, "1f2e3d4c")
    run(address, "2b2b2b2b")
    assert server.sent == len(server.body)


BIG_BODY = b"x" * (64 << 20)


def twice(address: str, folder: Path) -> str:
    """The sha256 of a file that is asked for twice."""
    for _ in range(2):
        (found,) = sources.files(SourceConfig(source=address), "train", downloads(folder))
    return found.sha256


def test_a_date_that_is_old_enough_is_asked_for_and_the_file_hardly_read(web: tuple[str, type[Server]], tmp_path: Path) -> None:
    address, server = web
    server.names, server.body = ("Last-Modified",), BIG_BODY
    assert twice(address, tmp_path) == hashlib.sha256(BIG_BODY).hexdigest()
    assert server.sent < 1.5 * len(BIG_BODY)


REPLACED = {
    "an older": (OLD - 7_000_000, b"other rows"),
    "a newer": (OLD + 7, b"other rows"),
    "the same, but longer": (OLD, b"other rows."),
}


@pytest.mark.parametrize(("changed", "body"), REPLACED.values(), ids=REPLACED)
def test_a_file_that_is_replaced_is_noticed_by_its_date(
    changed: float, body: bytes, web: tuple[str, type[Server]], tmp_path: Path
) -> None:  # fmt: skip
    address, server = web
    server.names, server.body = ("Last-Modified",), b"first rows"
    sources.files(SourceConfig(source=address), "train", downloads(tmp_path))
    server.changed, server.body = changed, body
    (found,) = sources.files(SourceConfig(source=address), "train", downloads(tmp_path))
    assert found.path.read_bytes() == body


FORGOTTEN = {
    "the server names no version": {"names": ()},
    "the date is so young that the file may have changed within its second": {"names": ("Last-Modified",), "changed": None},
}


@pytest.mark.parametrize("given", FORGOTTEN.values(), ids=FORGOTTEN)
def test_a_file_is_downloaded_again_where(given: dict[str, Any], run: Any, web: tuple[str, type[Server]]) -> None:
    address, server = web
    for name, value in given.items():
        setattr(server, name, value)
    if server.changed is None:
        import time

        server.changed = time.time()
    first = run(address, "1f2e3d4c")
    assert run(address, "2b2b2b2b")["digest"] == first["digest"]
    assert server.sent == 2 * len(server.body)


def test_a_server_without_conditions_is_asked_and_hardly_read(web: tuple[str, type[Server]], tmp_path: Path) -> None:
    address, server = web
    server.conditions, server.body = False, BIG_BODY
    assert twice(address, tmp_path) == hashlib.sha256(BIG_BODY).hexdigest()
    assert server.sent < 1.5 * len(BIG_BODY)


def test_a_changed_file_is_noticed(run: Any, web: tuple[str, type[Server]], tmp_path: Path) -> None:
    address, server = web
    run(address, "1f2e3d4c")
    server.body = write_rows(tmp_path / "other", rows(60)).read_bytes()
    assert run(address, "2b2b2b2b")["rows"]["read"] == 60


def test_a_pod_that_died_while_it_prepared_leaves_what_it_downloaded(
    run: Any, web: tuple[str, type[Server]], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    address, server = web

    def stop(*_: Any) -> None:
        raise Interrupted("Interrupted", "stopped")

    with monkeypatch.context() as patch:
        patch.setattr(loading, "load", stop)
        with pytest.raises(Interrupted):
            run(address, "1f2e3d4c")
    assert run(address, "1f2e3d4c")["rows"]["read"] == 64
    assert server.sent == len(server.body)


def test_what_a_pod_downloaded_before_the_file_changed_is_not_used(web: tuple[str, type[Server]], tmp_path: Path) -> None:
    address, server = web
    sources.files(SourceConfig(source=address), "train", downloads(tmp_path))
    server.body = b"other rows"
    (found,) = sources.files(SourceConfig(source=address), "train", downloads(tmp_path))
    assert found.path.read_bytes() == b"other rows"


def texts(folder: Path) -> bytes:
    """All that a folder's files hold, and their names."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return b"".join(str(path).encode() + path.read_bytes() for path in found)


def test_a_signature_is_told_to_nobody_and_another_one_brings_nothing(
    run: Any, web: tuple[str, type[Server]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    address, server = web
    server.body += b"{broken\n"
    results = [
        run(f"{address}?X-Amz-Signature=sesame{n}&token=sesame", f"{n}f2e3d4c", data__quality={"maxInvalidPercent": 5}) for n in (1, 2)
    ]
    assert results[0] == results[1]
    assert server.sent == len(server.body)
    said = capsys.readouterr().out
    assert "taken over" in said
    assert "sesame" not in said
    assert address.encode() in texts(tmp_path / "data" / "cache" / "records")
    assert b"sesame" not in texts(tmp_path / "data") + json.dumps(results).encode()


def test_files_that_the_query_names_are_several(web: tuple[str, type[Server]], tmp_path: Path) -> None:
    address, _ = web
    store = downloads(tmp_path)
    found = [sources.files(SourceConfig(source=f"{address}?file={name}&sig=x"), "train", store)[0] for name in ("aaaa", "bbbb", "aaaa")]
    assert found[0].path == found[2].path != found[1].path
    assert {file.name for file in found} == {address}
    assert b"aaaa" not in texts(store.folder.parent)


def brought(address: str, folder: Path) -> DataFile:
    """A file that is known and not here."""
    (first,) = sources.files(SourceConfig(source=address), "train", downloads(folder))
    first.path.unlink()
    (known,) = sources.files(SourceConfig(source=address), "train", downloads(folder))
    assert not known.path.exists()
    return known


def test_a_known_file_comes_when_it_is_read(web: tuple[str, type[Server]], tmp_path: Path) -> None:
    address, server = web
    known = brought(address, tmp_path)
    known.bring()
    assert known.path.read_bytes() == server.body


def test_a_file_that_changes_before_it_is_read_is_prepared_again(web: tuple[str, type[Server]], tmp_path: Path) -> None:
    address, server = web
    known = brought(address, tmp_path)
    server.body = b"other rows"
    with pytest.raises(Infrastructure, match="changed while it was prepared"):
        known.bring()
    (again,) = sources.files(SourceConfig(source=address), "train", downloads(tmp_path))
    again.bring()
    assert again.path.read_bytes() == b"other rows"


def test_a_download_that_was_damaged_comes_again(web: tuple[str, type[Server]], tmp_path: Path) -> None:
    address, server = web
    (found,) = sources.files(SourceConfig(source=address), "train", downloads(tmp_path))
    found.path.write_bytes(b"\0" * len(server.body))  # as a machine that lost its power leaves it
    (again,) = sources.files(SourceConfig(source=address), "train", downloads(tmp_path))
    again.bring()
    assert again.path.read_bytes() == server.body


@pytest.mark.parametrize("record", ["", "{}", "[1]", '{"files": 7}'])
def test_a_record_that_is_broken_is_as_none(record: str, web: tuple[str, type[Server]], tmp_path: Path) -> None:
    address, server = web
    sources.files(SourceConfig(source=address), "train", downloads(tmp_path))
    (path,) = (tmp_path / "records").iterdir()
    path.write_text(record)
    (found,) = sources.files(SourceConfig(source=address), "train", downloads(tmp_path))
    assert found.sha256
    assert server.sent == 2 * len(server.body)


def test_what_was_downloaded_for_other_data_is_removed(web: tuple[str, type[Server]], tmp_path: Path) -> None:
    address, _ = web
    store = downloads(tmp_path)
    (found,) = sources.files(SourceConfig(source=address), "train", store)
    (store.folder / "another.part").touch()
    (store.folder / f"{found.path.name}.part").touch()
    (store.folder / "hub" / "datasets--a--b").mkdir(parents=True)
    store.keep_only([found])
    assert sorted(path.name for path in store.folder.iterdir()) == [found.path.name, f"{found.path.name}.part"]


class Counter:
    """Passes connections on to a port, and counts the bytes that come back."""

    def __init__(self, port: int) -> None:
        self.received = 0
        self._port = port
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._socket.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                threading.Thread(target=self._pass, args=(near, far, 0), daemon=True).start()
                threading.Thread(target=self._pass, args=(far, near, 1), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, counted: int) -> None:
        with suppress(OSError), source, target:
            while block := source.recv(65536):
                self.received += counted * len(block)
                target.sendall(block)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[tuple[Counter, dict[str, str], Any]]:
    (tmp_path / "buckets" / "rows").mkdir(parents=True)
    with serving(tmp_path / "buckets") as server:
        counter = Counter(int(server.address.rpartition(":")[2]))
        keys = {**server.keys, "AWS_ENDPOINT_URL": counter.address}
        (tmp_path / "keys").mkdir()
        for name, value in keys.items():
            (tmp_path / "keys" / name).write_text(value)
        yield counter, {"secretMount": str(tmp_path / "keys")}, sources.s3_store("rows", {k.lower(): v for k, v in server.keys.items()})
        counter.close()


BIG = [{**row, "notes": "x" * 5000} for row in rows()]


@pytest.mark.parametrize("source", ["s3://rows/train/a.jsonl", "s3://rows/train/"], ids=["an object", "a prefix"])
def test_a_bucket_is_asked_for_versions_and_read_where_they_changed(
    source: str, run: Any, bucket: tuple[Counter, dict[str, str], Any], tmp_path: Path
) -> None:  # fmt: skip
    counter, secret, store = bucket
    body = write_rows(tmp_path / "big", BIG).read_bytes()
    obstore.put(store, "train/a.jsonl", body)
    first = run(source, "1f2e3d4c", secret)
    assert counter.received > len(body)
    once = counter.received
    assert run(source, "2b2b2b2b", secret)["digest"] == first["digest"]
    assert counter.received - once < 3000
    obstore.put(store, "train/a.jsonl", write_rows(tmp_path / "big", BIG[:60]).read_bytes())
    assert run(source, "2c2c2c2c", secret)["rows"]["read"] == 60


class Hub(BaseHTTPRequestHandler):
    """A hub with one data set of one file, as huggingface_hub asks for it."""

    commit = "1" * 40
    body: bytes
    sent: int

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        if self.path.startswith("/api/"):
            files = [{"type": "file", "path": "data/train.jsonl", "size": len(self.body), "oid": "0" * 40}]
            data_set = {"id": "owner/name", "sha": self.commit, "siblings": [{"rfilename": "data/train.jsonl"}], "tags": [], "downloads": 0}
            self._answer(json.dumps(files if "/tree/" in self.path else data_set).encode())
            return
        type(self).sent += len(self.body)
        self._answer(self.body)

    def _answer(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("ETag", f'"{hashlib.sha256(self.body).hexdigest()}"')
        self.send_header("Content-Length", str(len(content) if self.path.startswith("/api/") else len(self.body)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    found = type("OneHub", (Hub,), {"body": write_rows(tmp_path / "served", rows()).read_bytes(), "sent": 0})
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    with http(found) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield found


def test_a_data_set_of_the_hub_is_brought_once_a_commit(run: Any, hub: type[Hub], tmp_path: Path) -> None:
    first = run("hf://owner/name", "1f2e3d4c")
    assert hub.sent == len(hub.body)
    assert run("hf://owner/name", "2b2b2b2b")["digest"] == first["digest"]
    assert hub.sent == len(hub.body)
    hub.commit, hub.body = "2" * 40, write_rows(tmp_path / "served", rows(60)).read_bytes()
    assert run("hf://owner/name", "2c2c2c2c")["rows"]["read"] == 60


def test_a_data_set_that_is_brought_leaves_those_that_just_came(hub: type[Hub], tmp_path: Path) -> None:
    store = downloads(tmp_path)
    sources.files(SourceConfig(source="hf://owner/name"), "train", store)
    store.keep_only(())
    (known,) = sources.files(SourceConfig(source="hf://owner/name"), "train", store)
    (fresh,) = sources.files(SourceConfig(source="hf://owner/other"), "mix", store)
    assert (known.path.exists(), fresh.path.exists()) == (False, True)
    for file in (known, fresh):
        file.bring()
    assert known.path.read_bytes() == fresh.path.read_bytes() == hub.body


def test_every_use_of_a_data_set_comes_at_once(hub: type[Hub], tmp_path: Path) -> None:
    for use in ("train", "mix"):
        assert sources.files(SourceConfig(source="hf://owner/name"), use, downloads(tmp_path))
    assert hub.sent == len(hub.body)
