"""Stage fetch: fill the model folder from its source, once.

Invariant: only safetensors weights and plain files come in; nothing that unpickles or runs code is kept unless
`allowRemoteCode` says so; one process at a time fills the folder (all who name the source share it), and it counts only
when complete (see `layout`).
"""

from __future__ import annotations

import gzip
import json
import lzma
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from finetune_trainer import exits, layout, partial
from finetune_trainer.addresses import shown_in
from finetune_trainer.config import ModelConfig, RunConfig
from finetune_trainer.exits import Infrastructure, Interrupted, JsonObject, UserError
from finetune_trainer.progress import Progress, serving
from finetune_trainer.transfer import DOWNLOAD_FAILED, download

KEPT = (".safetensors", ".json", ".jinja", ".txt", ".model", ".md", ".tiktoken")
KEPT_NAMES = ("LICENSE", "LICENCE", "NOTICE")
SETTINGS = ("config.json", "tokenizer_config.json")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
AGAIN = "Write or upload the model's files again (a git clone needs git lfs)."
WRITERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")  # how transformers calls what AutoModelForCausalLM takes
DOWNLOAD = ".download"  # ends the name of the folder beside a model's into which that is downloaded
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".msgpack", ".h5")


def main(config: RunConfig) -> JsonObject:
    """Fetch `config.model` into its folder, or verify what is there; returns the stage's result."""
    model = config.model
    progress = Progress("fetch")
    with serving(progress):
        found = fetched(model.path)
        if found is None:
            progress.update(state="fetching", note=model.name)
            with layout.locked(model.path):
                found = fetched(model.path) or _fetch(model, progress)
        progress.update(state="done", percent=100)
        return found


def fetched(folder: Path) -> JsonObject | None:
    """The result of a model folder that is complete and intact, else None."""
    if not layout.is_complete(folder):
        return None
    try:
        return summary(folder, layout.verify(folder))
    except (layout.Corrupt, FileNotFoundError) as error:
        print(f"fetched again: {error}", flush=True)
        return None


def _fetch(model: ModelConfig, progress: Progress) -> JsonObject:
    """Fill the locked folder of `model`."""
    try:
        with opened(model) as source, layout.transaction(model.path, has_lock=True) as work:
            work.expected = copy_model(source, work.folder, model.allow_remote_code, progress)
            work.facts.update(source=model.name, revision=model.revision)
    except layout.Corrupt as error:
        raise Infrastructure("CopyIncomplete", f"model.source {model.name} changed while it was copied: {error}") from error
    return summary(model.path, layout.read_manifest(model.path))


def summary(folder: Path, manifest: dict[str, object]) -> JsonObject:
    """The result of a complete model folder."""
    files = manifest["files"]
    assert isinstance(files, dict)
    return {
        "stage": "fetch",
        "digest": manifest["digest"],
        "bytes": sum(int(entry["bytes"]) for entry in files.values()),
        "files": len(files),
        "family": json.loads((folder / "config.json").read_text()).get("model_type", ""),
        "license": license_of(folder),
    }


@contextmanager
def opened(model: ModelConfig) -> Iterator[Path]:
    """A folder with the source's files, for as long as the block runs. The model folder is locked."""
    scheme, rest = split_source(model.source)
    if scheme in ("image", "pvc"):
        yield local_folder(model, rest)
        return
    if scheme not in ("hf", "https"):
        raise UserError(
            "SourceNotSupported",
            f"model.source {model.name}: {scheme}:// is not supported yet",
            "Use image://, pvc://, hf:// or https://.",
        )
    with scratch_folder(model.path) as scratch:
        yield download_hub(rest.strip("/"), model, scratch) if scheme == "hf" else download_archive(model, scratch)


@contextmanager
def scratch_folder(final: Path) -> Iterator[Path]:
    """Where the model of the locked folder `final` is downloaded to, with what an earlier try has left of it. It stays where this one is
    stopped, or the network fails: the next goes on from it. What was left of another model, which nobody fetches any more, is removed."""
    folder = final.parent / f".{final.name}{DOWNLOAD}"
    for other in final.parent.glob(f".*{DOWNLOAD}"):
        if other != folder and not layout.is_locked(other.with_name(other.name.removesuffix(DOWNLOAD)[1:])):
            shutil.rmtree(other, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except Interrupted:
        raise
    except BaseException as error:
        if not (isinstance(error, Infrastructure) and error.reason == DOWNLOAD_FAILED):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def split_source(source: str) -> tuple[str, str]:
    """Scheme and the rest of a source address."""
    scheme, separator, rest = source.partition("://")
    if not separator or not rest:
        raise UserError("SourceInvalid", f"model.source {source!r} is not scheme://address", "For example image:///opt/models/x.")
    return scheme, rest


def local_folder(model: ModelConfig, rest: str) -> Path:
    """The folder of an image:// or mounted pvc:// source."""
    folder = model.mount or Path("/", rest)
    if not folder.is_dir():
        raise UserError("SourceMissing", f"model.source {model.name}: there is no folder {folder}", "Correct the path.")
    return folder


def download_hub(name: str, model: ModelConfig, scratch: Path) -> Path:
    """Download a repository of the model hub (HF_TOKEN and HF_ENDPOINT come from the environment)."""
    from httpx2 import HTTPError as HubError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError, XetDownloadError

    patterns = [f"*{suffix}" for suffix in (*KEPT, *((".py",) if model.allow_remote_code else ()))]
    if kept := partial.keep_whole(scratch):
        print(f"{model.name}: {kept:,} bytes were downloaded before; going on", flush=True)
    try:
        snapshot_download(
            name,
            revision=model.revision or None,
            local_dir=scratch,
            allow_patterns=[*patterns, *KEPT_NAMES],
            endpoint=os.environ.get("HF_ENDPOINT") or None,
        )
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UserError(
            "SourceMissing", f"model.source {model.name}: {shown_in(str(error))}", "Check name, revision and secretName."
        ) from error
    except (HubError, XetDownloadError, OSError) as error:  # the last where the hub does not answer, or gives a file another size
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError | TimeoutError):
            raise  # the volume's
        raise Infrastructure(DOWNLOAD_FAILED, f"model.source {model.name}: {shown_in(str(error))}") from error
    partial.drop_others(scratch)
    return scratch


def download_archive(model: ModelConfig, scratch: Path) -> Path:
    """Download a .tar(.gz) whose sha256 is `model.revision`, and unpack it (plain files only)."""
    expected = model.revision.removeprefix("sha256:")
    if len(expected) != 64:
        raise UserError("RevisionMissing", f"{model.name} needs model.revision: the archive's sha256", "Set model.revision.")
    archive = scratch / "archive"
    if not archive.exists():
        download(model.source, archive)
    found = layout.sha256_file(archive)
    if found != expected.lower():
        raise UserError("DigestMismatch", f"{model.name} has sha256 {found}, not {expected}", "Correct model.revision.")
    target = scratch / "files"
    shutil.rmtree(target, ignore_errors=True)
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:  # the others of one that is cut off
        raise UserError(
            "SourceInvalid", f"{model.name} is not a safe and whole tar archive: {error}", "Pack the folder with tar."
        ) from error
    found_configs = sorted(target.rglob("config.json"), key=lambda path: len(path.parts))
    return found_configs[0].parent if found_configs else target


def copy_model(source: Path, target: Path, allow_remote_code: bool, progress: Progress) -> dict[str, int]:
    """Copy the files worth keeping; returns their bytes by name. Raises UserError where the folder is no safetensors model."""
    names = sorted(str(path.relative_to(source)) for path in source.rglob("*") if path.is_file())
    check_model(source, names, allow_remote_code)
    chosen = {name: (source / name).stat().st_size for name in names if keeps(name, allow_remote_code)}
    total = sum(chosen.values())
    if total > (free := shutil.disk_usage(target).free):
        raise Infrastructure("DiskFull", f"the model has {total:,} bytes, the volume of {target} {free:,} free", "Raise spec.storage.size.")
    done = 0
    for name, size in chosen.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
        done += size
        progress.update(percent=round(100 * done / max(1, total)))
    return chosen


def check_model(source: Path, names: list[str], allow_remote_code: bool) -> None:
    """Refuse what is no model, brings only pickled weights, or wants to run its own code."""
    if "config.json" not in names:
        raise UserError("ModelInvalid", f"{source} has no config.json", "Point model.source at a transformers model folder.")
    if not any(name.endswith(".safetensors") for name in names):
        pickles = [name for name in names if name.endswith(PICKLED)]
        found = f"only pickled weights ({pickles[0]})" if pickles else "no weights"
        raise UserError("WeightsNotSafe", f"{source} has {found}; safetensors are needed", "Convert the weights to safetensors.")
    for name in SETTINGS:
        if name in names and "auto_map" in _settings(source / name) and not allow_remote_code:
            raise UserError(
                "RemoteCodeRefused",
                f"the model brings its own Python code ({name} of {source} has auto_map)",
                "Take a model that transformers has the code of; code that comes with a model is not run.",
            )
    check_kind(source)
    check_weights(source, names)


def check_kind(source: Path) -> None:
    """Refuse what does not write text from left to right, and weights that were quantised already: what trains on them, or is merged into
    them, is not what was scored."""
    settings = _settings(source / "config.json")
    architectures = settings.get("architectures")
    names = [str(name) for name in architectures] if isinstance(architectures, list) else []
    other = names and "auto_map" not in settings and not any(name.endswith(WRITERS) for name in names)
    if other or settings.get("is_encoder_decoder") is True:  # as T5 and Whisper are, whose architectures end as those of models that see do
        raise UserError(
            "NotALanguageModel",
            f"{source} is a {', '.join(names) or 'model in two halves'} (config.json): that does not write text from left to right",
            "Take a model whose architecture ends with ForCausalLM.",
        )
    parts = (settings, settings.get("text_config"))  # of what also sees or hears, the second is what writes
    if quantised := next((found for part in parts if isinstance(part, dict) and (found := part.get("quantization_config"))), None):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise UserError(
            "WeightsQuantised",
            f"the weights of {source} are quantised already ({method}; quantization_config in config.json)",
            "Take the model in 16 bits (of one that is published in 8 alone there are converted copies); method QLoRA quantises it itself.",
        )


def check_weights(source: Path, names: list[str]) -> None:
    """Refuse weights that are not all there or are cut off: whoever loads them would find out, with its GPUs."""
    from safetensors import SafetensorError, safe_open  # in the image alone: what else is here is imported where there is none

    listed = _settings(source / INDEX).get("weight_map") if INDEX in names and WEIGHTS not in names else {"": WEIGHTS}
    files = sorted({str(name) for name in listed.values()}) if isinstance(listed, dict) else []
    missing = [name for name in files if name not in names] or ([] if files else [f"weight_map in {INDEX}"])
    if missing:
        raise UserError("WeightsMissing", f"{source} has no {', '.join(missing[:5])}: its weights are not all there", AGAIN)
    for name in files:
        try:
            with safe_open(source / name, framework="numpy"):
                pass
        except SafetensorError as error:
            if exits.volume_errno(error) is not None:
                raise
            raise UserError("WeightsDamaged", f"{source / name} is damaged or cut off: {error}", AGAIN) from error


def _settings(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise UserError("ModelInvalid", f"{path} is not JSON: {error}", "Write or upload the model's files again.") from error
    if not isinstance(found, dict):
        raise UserError("ModelInvalid", f"{path} is no JSON object", "Write or upload the model's files again.")
    return found


def keeps(name: str, allow_remote_code: bool) -> bool:
    """Whether a file belongs to a model folder."""
    path = PurePosixPath(name)
    if any(part.startswith(".") for part in path.parts):
        return False
    return path.suffix in KEPT or path.name in KEPT_NAMES or (allow_remote_code and path.suffix == ".py")


def license_of(folder: Path) -> str:
    """The licence that the model card's front matter names, or ''."""
    card = folder / "README.md"
    if not card.is_file():
        return ""
    lines = card.read_text(errors="replace").splitlines()[:80]
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("license:")), "")
