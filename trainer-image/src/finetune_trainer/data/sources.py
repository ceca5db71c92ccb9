"""Where data lie → files on this machine.

`configmap://` and `pvc://` are mounted, `image://` is in the image; `https://`, `s3://` and `hf://` are downloaded into a
scratch folder, from which a download that broke off goes on. A folder (of a volume, under a prefix ending in `/`, or a
hub's data set) stands for all data files in it, in the order of their names.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from finetune_trainer.config import SourceConfig
from finetune_trainer.data.reading import DataFile
from finetune_trainer.exits import Infrastructure, UserError, raise_volume_failure
from finetune_trainer.transfer import Answer, Broken, Open, over_http, transfer

if TYPE_CHECKING:
    from obstore import GetResult
    from obstore.store import S3Store

Use = str  # train, validation, test or mix
DATA_FILE = re.compile(r"\.(jsonl|ndjson|json|csv|tsv|parquet)(\.(gz|bz2|xz|zst))?$", re.IGNORECASE)
HUB_SPLITS: Mapping[Use, tuple[str, ...]] = {"validation": ("validation", "valid", "dev"), "test": ("test",)}
MORE_TIME = {"timeout": "120s", "connect_timeout": "15s"}
CHECK = "Check the name and the path."


def files(source: SourceConfig, use: Use, scratch: Path) -> list[DataFile]:
    """The files of a source, downloaded into `scratch` where they are elsewhere. Raises UserError where there is none,
    Infrastructure where it cannot be reached, OSError where a volume fails."""
    scheme, _, rest = source.source.partition("://")
    if source.mount is not None or scheme == "image":
        return local(source.source, source.mount or Path("/", rest))
    if scheme not in _REMOTE:
        raise UserError("SourceNotSupported", f"data source {source.source}: {scheme}:// is not supported yet", "Use pvc:// or s3://.")
    return _REMOTE[scheme](source, rest, use, scratch)


def credentials(source: SourceConfig) -> dict[str, str]:
    """The keys of the source's Secret, by lower-case name."""
    folder = source.secret_mount
    if folder is None:
        return {}
    return {path.name.lower(): path.read_text().strip() for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")}


def local(name: str, path: Path) -> list[DataFile]:
    """A file, or the data files of a folder."""
    if not path.is_dir():
        return [DataFile(name, path)]
    try:
        found = sorted(p for p in path.rglob("*") if p.is_file() and DATA_FILE.search(p.name) and not _hidden(p.relative_to(path)))
    except OSError as error:
        raise_volume_failure(error)
        raise UserError("SourceMissing", f"data source {name}: {error.strerror}", CHECK) from error
    if not found:
        raise UserError("SourceMissing", f"data source {name} is a folder without a data file ({path})", CHECK)
    return [DataFile(f"{name.rstrip('/')}/{p.relative_to(path)}", p) for p in found]


def _hidden(path: Path | PurePosixPath) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _https(source: SourceConfig, _rest: str, _use: Use, scratch: Path) -> list[DataFile]:
    return [_downloaded(source.source, over_http(source.source, credentials(source).get("token", "")), scratch)]


def _downloaded(name: str, ask: Open, scratch: Path) -> DataFile:
    target = scratch / hashlib.sha256(name.encode()).hexdigest()[:16]
    if not target.exists():
        transfer(name, ask, target)
    return DataFile(name, target)


def _s3(source: SourceConfig, rest: str, _use: Use, scratch: Path) -> list[DataFile]:
    bucket, _, key = rest.partition("/")
    store = s3_store(bucket, credentials(source))
    keys = sorted(_listed(source.source, store, key)) if key.endswith("/") or not key else [key]
    if not keys:
        raise UserError("SourceMissing", f"data source {source.source}: no data file is there", CHECK)
    return [_downloaded(f"s3://{bucket}/{name}", _over_s3(source.source, store, name), scratch) for name in keys]


def s3_store(bucket: str, keys: Mapping[str, str]) -> S3Store:
    """A bucket, opened with the Secret's keys (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …), else as the environment says."""
    from obstore.exceptions import UnknownConfigurationKeyError
    from obstore.store import S3Store

    endpoint = keys.get("aws_endpoint_url") or os.environ.get("AWS_ENDPOINT_URL", "")
    try:
        options = {**MORE_TIME, "allow_http": endpoint.startswith("http://")}
        return S3Store(bucket, config=dict(keys), client_options=options)  # type: ignore[arg-type]
    except UnknownConfigurationKeyError as error:
        reason = f"s3://{bucket}: the Secret has a key that is none of S3's: {error}"
        raise UserError("SecretInvalid", reason, "Name keys as AWS does: AWS_ACCESS_KEY_ID, …") from error


def _listed(name: str, store: S3Store, prefix: str) -> Iterator[str]:
    import obstore

    try:
        with _s3_errors(name):
            for page in obstore.list(store, prefix or None):
                yield from (item["path"] for item in page if DATA_FILE.search(item["path"]) and not _hidden(PurePosixPath(item["path"])))
    except Broken as error:
        raise Infrastructure("DownloadFailed", f"data source {name}: {error}") from error


def _over_s3(name: str, store: S3Store, key: str) -> Open:
    import obstore
    from obstore.exceptions import PreconditionError

    def ask(offset: int, version: str) -> Answer:
        options = {"range": {"offset": offset}, "if_match": version} if offset else {}
        with _s3_errors(name):
            try:
                found = obstore.get(store, key, options=options)  # type: ignore[arg-type]
            except PreconditionError:
                return ask(0, "")
            return Answer(offset, found.meta["size"], found.meta["e_tag"] or "", _s3_blocks(name, found))

    return ask


def _s3_blocks(name: str, found: GetResult) -> Iterator[bytes]:
    with _s3_errors(name):
        for block in found.stream():
            yield bytes(block)


@contextmanager
def _s3_errors(name: str) -> Iterator[None]:
    """Errors of the store are the user's where nothing is there or access is refused; else the connection's."""
    from obstore import exceptions

    try:
        yield
    except (FileNotFoundError, exceptions.NotFoundError, exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise UserError("SourceMissing", f"data source {name}: {_told(error)}", "Check bucket, key and secretName.") from error
    except exceptions.BaseError as error:
        raise Broken(_told(error)) from error


def _told(error: Exception) -> str:
    """The server's own words, if there are some."""
    text = " ".join(str(error).split())
    said = re.search(r"<Message>(.*?)</Message>", text)
    return said.group(1) if said else text[:300]


def _hf(source: SourceConfig, rest: str, use: Use, scratch: Path) -> list[DataFile]:
    """Files of a data set of the hub: `owner/name[@revision][/path]`. Without a path those of the use's split, by their names.

    HF_ENDPOINT names another hub, HF_HUB_CACHE a folder with data sets in the hub's cache layout, HF_HUB_OFFLINE=1 that alone."""
    from httpx2 import HTTPError as HubError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    owner, _, tail = rest.removeprefix("datasets/").partition("/")
    name, _, path = tail.partition("/")
    name, _, revision = name.partition("@")
    try:
        folder = snapshot_download(
            f"{owner}/{name}",
            repo_type="dataset",
            revision=revision or None,
            token=credentials(source).get("token"),
            cache_dir=os.environ.get("HF_HUB_CACHE") or scratch / "hub",
            allow_patterns=[path, f"{path.rstrip('/')}/*"] if path else None,
        )
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UserError("SourceMissing", f"data source {source.source}: {error}", "Check name, revision and secretName.") from error
    except (LocalEntryNotFoundError, HubError, ConnectionError, TimeoutError) as error:
        raise Infrastructure("DownloadFailed", f"data source {source.source}: {error}") from error
    found = local(source.source, Path(folder, path))
    return found if path else of_split(found, use)


def of_split(found: list[DataFile], use: Use) -> list[DataFile]:
    """The files whose names say that they are of this use; all of them where no name says anything."""
    kinds = [next((split for split, words in HUB_SPLITS.items() if _says(file.name, words)), "train") for file in found]
    wanted = "train" if use == "mix" else use
    chosen = [file for file, kind in zip(found, kinds, strict=True) if kind == wanted]
    return chosen or (found if len(set(kinds)) == 1 else [])


def _says(name: str, words: tuple[str, ...]) -> bool:
    return any(re.search(rf"(^|[/_.-]){word}([/_.-]|$)", name.lower()) for word in words)


_REMOTE: Mapping[str, Callable[[SourceConfig, str, Use, Path], list[DataFile]]] = {"https": _https, "s3": _s3, "hf": _hf}
