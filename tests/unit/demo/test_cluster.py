"""Which cluster the demo uses, and what it needs before anything is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from demo import __main__ as demo
from demo import cluster, example
from demo.kube import DemoError, Kubectl

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("case", "node", "docker", "found"),
    [
        ("the built-in node is tried first, also where Docker runs", True, True, "node"),
        ("without root or Linux it is kind", False, True, "kind"),
    ],
)
def test_auto(case: str, node: bool, docker: bool, found: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    machine(monkeypatch, node=node, docker=docker)
    assert cluster.resolve("auto") == found
    assert "CLUSTER=node, kind or current chooses another" in capsys.readouterr().out


def test_auto_where_no_cluster_can_run_says_what_each_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, node=False, docker=False)
    with pytest.raises(DemoError, match=r"needs Linux and root, kind needs kind and a running Docker.*CLUSTER=current"):
        cluster.resolve("auto")


def machine(monkeypatch: pytest.MonkeyPatch, *, node: bool, docker: bool) -> None:
    monkeypatch.setattr(cluster, "_node_can_run", lambda: node)
    monkeypatch.setattr(cluster, "_succeeds", lambda *command: docker)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")


@pytest.mark.parametrize(
    ("images", "missing"),
    [("{}", "operator, trainer"), ('{"operator": "r/operator:1"}', "trainer"), ('{"operator": "r/operator:1", "trainer": ""}', "trainer")],
)
def test_the_current_cluster_needs_images_before_anything_is_installed(
    images: str, missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster, "install", lambda ground: pytest.fail("installed"))
    assert demo.main(["up", "--cluster", "current", "--images", images]) == 1
    said = capsys.readouterr().err
    assert f"no image is named for: {missing}." in said
    assert "make demo CLUSTER=current IMAGES='{" in said


def test_the_current_cluster_gets_the_images_that_are_named() -> None:
    images = demo.images_of('{"operator": "r/operator:1", "trainer": "r/trainer:1"}')
    assert cluster.chart_values(cluster.up("current", images).images) == [
        "--set", "images.operator=r/operator:1", "--set", "images.trainer=r/trainer:1",
    ]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), [("operator=x", "is not JSON"), ('["x"]', "is not an object of texts")])
def test_images_that_are_not_read(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        demo.main(["up", "--images", text])
    assert message in capsys.readouterr().err


def test_what_it_prints_at_the_end_removes_that_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    demo.next_steps(cluster.Cluster("current", Kubectl(), {}), example.load())
    assert "`make demo-down CLUSTER=current` removes all of it" in capsys.readouterr().out


def test_make_hands_the_images_on() -> None:
    images = '{"operator":"r/operator:1","trainer":"r/trainer:1"}'
    command = ["make", "--no-print-directory", "-n", "demo", "CLUSTER=current", f"IMAGES={images}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith(f"-m demo up --cluster current --images '{images}'")


def test_make_help_names_every_setting() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for setting in ("CLUSTER=auto", "IMAGES='{", "TIER="):
        assert setting in done.stdout
