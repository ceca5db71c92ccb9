"""How buildah is called here: its storage, and the machine's package settings carried into RUN steps.

Settings travel as mounted files that pip and uv read by themselves (/etc/pip.conf, /etc/uv/uv.toml), so that no
Dockerfile knows of them and none of them stays in an image.
"""

import configparser
import os
from collections.abc import Mapping
from pathlib import Path

from devcluster import paths

_CA_INSIDE = "/etc/ssl/certs/ca-certificates.crt"
_CA_VARIABLES = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_PIP_FILES = (Path("/etc/pip.conf"), Path.home() / ".pip" / "pip.conf", Path.home() / ".config" / "pip" / "pip.conf")
_PIP_KEYS = ("index-url", "extra-index-url", "trusted-host", "find-links", "timeout")
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


def buildah(verb: str) -> list[str]:
    """buildah with its storage in the cache; what runs is gone with the machine's next start."""
    storage = paths.cache() / "buildah"
    return ["buildah", "--root", str(storage), "--runroot", "/run/finetune-buildah", "--storage-driver", "overlay", verb]


def build_command(base: str) -> list[str]:
    """The beginning of every build: chroot isolation, the host's network, mounts, the base image."""
    # 127.0.0.1:25000 is plain HTTP
    command = [*buildah("bud"), "--isolation", "chroot", "--network", "host", "--tls-verify=false", "--layers"]
    for host, inside, mode in _mounts():
        command += ["-v", f"{host}:{inside}:{mode}"]
    for name in _PROXIES:
        if os.environ.get(name):
            command += ["--build-arg", f"{name}={os.environ[name]}"]
    return [*command, "--build-arg", f"BASE_IMAGE={paths.REGISTRY}/{paths.in_registry(base)}"]


def environment() -> dict[str, str]:
    return {"BUILDAH_ISOLATION": "chroot", "TMPDIR": str(_folder("tmp"))}


def _mounts() -> list[tuple[Path, str, str]]:
    settings = _folder("build-settings")
    (settings / "pip.conf").write_text(pip_settings(os.environ, _PIP_FILES))
    (settings / "uv.toml").write_text(uv_settings(os.environ, _PIP_FILES))
    mounts = [
        (settings / "pip.conf", "/etc/pip.conf", "ro"),
        (settings / "uv.toml", "/etc/uv/uv.toml", "ro"),
        (_folder("uv"), "/root/.cache/uv", "rw"),
        (_folder("pip"), "/root/.cache/pip", "rw"),
    ]
    authority = next((Path(os.environ[name]) for name in _CA_VARIABLES if os.environ.get(name)), None)
    if authority is not None and authority.is_file():
        mounts.append((authority.resolve(), _CA_INSIDE, "ro"))
    return mounts


def pip_settings(variables: Mapping[str, str], files: tuple[Path, ...]) -> str:
    """A pip.conf with the index settings of the environment and, below it, of the machine's own files."""
    lines = ["[global]", f"cert = {_CA_INSIDE}", "cache-dir = /root/.cache/pip", "root-user-action = ignore"]
    for key, value in _index(variables, files).items():
        usable = key != "find-links" or "://" in value  # a folder of this machine is not there inside
        lines += [f"{key} = {value}"] if usable else []
    return "\n".join(lines) + "\n"


def uv_settings(variables: Mapping[str, str], files: tuple[Path, ...]) -> str:
    """A uv.toml with the default index, the machine's certificates, and copies instead of links into the cache."""
    lines = ["native-tls = true", 'cache-dir = "/root/.cache/uv"', 'link-mode = "copy"']
    fallback = _index(variables, files).get("index-url")
    index = variables.get("UV_DEFAULT_INDEX") or variables.get("UV_INDEX_URL") or fallback
    if index:
        lines += ["[[index]]", f'url = "{index}"', "default = true"]
    return "\n".join(lines) + "\n"


def _index(variables: Mapping[str, str], files: tuple[Path, ...]) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.read(files)
    found = {key: parser.get("global", key, fallback="") for key in _PIP_KEYS}
    for key in _PIP_KEYS:
        name = "PIP_DEFAULT_TIMEOUT" if key == "timeout" else f"PIP_{key.upper().replace('-', '_')}"
        found[key] = variables.get(name) or found[key]
    return {key: " ".join(value.split()) for key, value in found.items() if value}


def _folder(name: str) -> Path:
    folder = paths.cache() / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
