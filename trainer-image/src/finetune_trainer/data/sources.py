"""Where data lie → files on this machine.

`configmap://` and `pvc://` are mounted, `image://` is in the image; `https://`, `s3://` and `hf://` are downloaded where
it is not known what they hold (`remote`). A folder (of a volume, under a prefix ending in `/`, or a hub's data set)
stands for all data files in it, in the order of their names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from finetune_trainer import addresses
from finetune_trainer.config import SourceConfig
from finetune_trainer.data.reading import DataFile
from finetune_trainer.data.remote import Downloads, Remote
from finetune_trainer.exits import Infrastructure, UserError, raise_volume_failure
from finetune_trainer.transfer import Answer, Broken, Open, Unchanged, Version, over_http, transfer, unchanged_over_http

if TYPE_CHECKING:
    from obstore import GetResult, ObjectMeta
    from obstore.store import S3Store

Use = str  # train, validation, test or mix
DATA_FILE = re.compile(r"\.(jsonl|ndjson|json|csv|tsv|parquet)(\.(gz|bz2|xz|zst))?$", re.IGNORECASE)
HUB_SPLITS: Mapping[Use, tuple[str, ...]] = {"validation": ("validation", "valid", "dev"), "test": ("test",)}
MORE_TIME = {"timeout": "120s", "connect_timeout": "15s"}
CHECK = "Check the name and the path."


def files(source: SourceConfig, use: Use, downloads: Downloads) -> list[DataFile]:
    """The files of a source; one that is elsewhere is here, or its content is known. Raises UserError where there is none,
    Infrastructure where it cannot be reached, OSError where a volume fails."""
    scheme, _, rest = source.source.partition("://")
    if source.mount is not None or scheme == "image":
        return local(source.name, source.mount or Path("/", rest))
    if scheme not in _REMOTE:
        raise UserError("SourceNotSupported", f"data source {source.name}: {scheme}:// is not supported yet", "Use pvc:// or s3://.")
    return _REMOTE[scheme](source, rest, use, downloads)


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


def _https(source: SourceConfig, _rest: str, _use: Use, downloads: Downloads) -> list[DataFile]:
    address, token = source.source, credentials(source).get("token", "")
    key, unchanged = addresses.identity(address), unchanged_over_http(address, token)
    return downloads.files(_single(key, source.name, unchanged, over_http(address, token), downloads))


def _single(key: str, name: str, unchanged: Unchanged, ask: Open, downloads: Downloads) -> Remote:
    """A file that `transfer` brings."""
    target = downloads.target(key)
    return Remote(key, name, unchanged, lambda: (transfer(name, ask, target), [DataFile(name, target)]))


def _s3(source: SourceConfig, rest: str, _use: Use, downloads: Downloads) -> list[DataFile]:
    bucket, _, key = rest.partition("/")
    store = s3_store(bucket, credentials(source))
    if key and not key.endswith("/"):
        name = f"s3://{bucket}/{key}"
        return downloads.files(_single(name, name, _unchanged_in_s3(name, store, key), _over_s3(name, store, key), downloads))
    listed = sorted(_listed(source.source, store, key))
    if not listed:
        raise UserError("SourceMissing", f"data source {source.source}: no data file is there", CHECK)
    named = [(f"s3://{bucket}/{key}", version, _over_s3(source.source, store, key)) for key, version in listed]
    remotes = [_single(name, name, version.__eq__, ask, downloads) for name, version, ask in named]
    return [file for remote in remotes for file in downloads.files(remote)]


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


def _listed(name: str, store: S3Store, prefix: str) -> Iterator[tuple[str, Version]]:
    import obstore

    try:
        with _s3_errors(name):
            for page in obstore.list(store, prefix or None):
                chosen = (item for item in page if DATA_FILE.search(item["path"]) and not _hidden(PurePosixPath(item["path"])))
                yield from ((item["path"], _s3_version(item)) for item in chosen)
    except Broken as error:
        raise Infrastructure("DownloadFailed", f"data source {name}: {error}") from error


def _s3_version(item: ObjectMeta) -> Version:
    return Version(item["e_tag"] or "", item["size"])


def _unchanged_in_s3(name: str, store: S3Store, key: str) -> Unchanged:
    import obstore

    def unchanged(version: Version) -> bool:
        with _s3_errors(name):
            return _s3_version(obstore.head(store, key)) == version

    return unchanged


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


def _hf(source: SourceConfig, rest: str, use: Use, downloads: Downloads) -> list[DataFile]:
    """Files of a data set of the hub: `owner/name[@revision][/path]`. Without a path those of the use's split, by their names.

    HF_ENDPOINT names another hub, HF_HUB_CACHE a folder with data sets in the hub's cache layout, HF_HUB_OFFLINE=1 that alone."""
    owner, _, tail = rest.removeprefix("datasets/").partition("/")
    name, _, path = tail.partition("/")
    name, _, revision = name.partition("@")
    data_set = DataSet(source, f"{owner}/{name}", revision or None, path)
    mirror = os.environ.get("HF_HUB_CACHE")
    if mirror:
        return data_set.files(use, Path(mirror))[1]
    folder = downloads.target(source.source)  # every use of it comes at once
    name = f"{source.source} {use}"
    return downloads.files(Remote(name, name, data_set.is_at, lambda: data_set.files(use, folder)))


@dataclass(frozen=True)
class DataSet:
    """A data set of the hub, at a revision (None: the newest), of which `path` is wanted ('': the files of a split)."""

    source: SourceConfig
    repository: str
    revision: str | None
    path: str

    def is_at(self, version: Version) -> bool:
        """Whether the revision still is this commit."""
        from huggingface_hub import HfApi

        with self._errors():
            return HfApi(endpoint=_hub(), token=self._token).dataset_info(self.repository, revision=self.revision).sha == version.tag

    def files(self, use: Use, cache: Path) -> tuple[Version, list[DataFile]]:
        """The commit (as a Version of no size) and the files of a use, downloaded into `cache` in the hub's layout."""
        from huggingface_hub import snapshot_download

        wanted = [self.path, f"{self.path.rstrip('/')}/*"] if self.path else None
        with self._errors():
            folder = snapshot_download(
                self.repository,
                repo_type="dataset",
                revision=self.revision,
                endpoint=_hub(),
                token=self._token,
                cache_dir=cache,
                allow_patterns=wanted,
            )
        found = local(self.source.source, Path(folder, self.path))
        return Version(Path(folder).name, 0), found if self.path else of_split(found, use)

    @property
    def _token(self) -> str | None:
        return credentials(self.source).get("token")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from httpx2 import HTTPError as HubError
        from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

        name = f"data source {self.source.source}"
        try:
            yield
        except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise UserError("SourceMissing", f"{name}: {addresses.shown_in(str(error))}", "Check name, revision and secretName.") from error
        except (LocalEntryNotFoundError, HubError, ConnectionError, TimeoutError) as error:
            raise Infrastructure("DownloadFailed", f"{name}: {addresses.shown_in(str(error))}") from error


def _hub() -> str | None:
    return os.environ.get("HF_ENDPOINT")


def of_split(found: list[DataFile], use: Use) -> list[DataFile]:
    """The files whose names say that they are of this use; all of them where no name says anything."""
    kinds = [next((split for split, words in HUB_SPLITS.items() if _says(file.name, words)), "train") for file in found]
    wanted = "train" if use == "mix" else use
    chosen = [file for file, kind in zip(found, kinds, strict=True) if kind == wanted]
    return chosen or (found if len(set(kinds)) == 1 else [])


def _says(name: str, words: tuple[str, ...]) -> bool:
    return any(re.search(rf"(^|[/_.-]){word}([/_.-]|$)", name.lower()) for word in words)


_REMOTE: Mapping[str, Callable[[SourceConfig, str, Use, Downloads], list[DataFile]]] = {"https": _https, "s3": _s3, "hf": _hf}
