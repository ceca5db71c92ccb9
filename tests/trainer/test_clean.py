"""Stage clean on real folders: what is listed goes, and nothing else does. (What crashes leave is in test_crash.)"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer import clean, layout
from finetune_trainer.__main__ import main
from finetune_trainer.config import CleanRun
from finetune_trainer.exits import UserError

OLD, NEW = "0a0b0c0d", "1f2e3d4c"


def config(work: Path, folders: Iterable[str] = (), checkpoints_of: Iterable[str] = (), keep: int = 0) -> dict[str, Any]:
    return {
        "version": 1,
        "stage": "clean",
        "finetune": {"namespace": "ml", "name": "bot", "uid": "0b6c", "revision": NEW, "attempt": 1},
        "clean": {"path": str(work), "folders": list(folders), "checkpointsOf": list(checkpoints_of), "keep": keep},
    }


def cleaned(work: Path, *folders: str, checkpoints_of: Iterable[str] = (), keep: int = 0) -> dict[str, object]:
    return clean.main(CleanRun.model_validate(config(work, folders, checkpoints_of, keep)))


def committed(folder: Path, size: int = 10) -> Path:
    with layout.transaction(folder) as work:
        (work.folder / "weights").write_bytes(b"x" * size)
    return folder


def revision(work: Path, name: str, attempts: Iterable[str] = ("a1-aaaaaaaa", "a2-bbbbbbbb")) -> None:
    """Two checkpoints an attempt, an artifact in the last one, an evaluation, the data."""
    folder, names = work / "revisions" / name, list(attempts)
    for attempt in names:
        for step in (10, 20):
            committed(layout.checkpoint(folder / attempt, step))
    committed(layout.artifact(folder / names[-1]))
    committed(folder / "evaluations" / "tuned-k")
    committed(work / "data" / name)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A work volume with two revisions and a model."""
    work = tmp_path / "work"
    committed(work / "models" / "m")
    revision(work, OLD)
    revision(work, NEW)
    return work


def counting(work: Path) -> list[str]:
    """Folders that count."""
    return sorted(str(path.parent.relative_to(work)) for path in work.rglob(layout.COMMIT))


def of(work: Path, name: str) -> list[str]:
    return [folder for folder in counting(work) if name in folder]


WHOLE = (f"revisions/{OLD}", f"data/{OLD}")


def test_what_is_listed_goes_and_nothing_else(volume: Path) -> None:
    others = [folder for folder in counting(volume) if OLD not in folder]
    size = sum((volume / folder / name).stat().st_size for folder in of(volume, OLD) for name in ("weights", layout.MANIFEST))
    result = cleaned(volume, *WHOLE)
    assert result == {"stage": "clean", "folders": 2, "files": 7 * 2, "bytes": size, "kept": []}
    assert counting(volume) == others
    assert not [path for path in volume.rglob("*") if OLD in str(path.relative_to(volume))]


def test_what_is_not_there_is_done(volume: Path) -> None:
    cleaned(volume, *WHOLE)
    assert cleaned(volume, *WHOLE, "data/never-made") == {"stage": "clean", "folders": 0, "files": 0, "bytes": 0, "kept": []}
    assert cleaned(volume / "models", *WHOLE)["folders"] == 0, "a volume without these roots"


def test_what_a_fill_left_beside_goes_as_well(volume: Path) -> None:
    for name in (f".{OLD}.tmp-0123", f".{NEW}.tmp-4567"):
        (volume / "data" / name).mkdir()
        (volume / "data" / name / "rows").write_text("half")
    cleaned(volume, f"data/{OLD}")
    assert sorted(path.name for path in (volume / "data").iterdir()) == [f".{NEW}.tmp-4567", NEW]


@pytest.mark.parametrize(
    ("keep", "left"), [(0, []), (1, ["a10-cccccccc", "a10-dddddddd"]), (2, ["a10-cccccccc", "a10-dddddddd", "a2-bbbbbbbb"]), (9, None)]
)
def test_checkpoints_of_the_newest_attempts_stay_with_those_of_all_their_gangs(keep: int, left: list[str] | None, tmp_path: Path) -> None:
    attempts = ["a1-aaaaaaaa", "a2-bbbbbbbb", "a10-cccccccc", "a10-dddddddd"]
    revision(tmp_path, OLD, attempts)
    cleaned(tmp_path, checkpoints_of=[f"revisions/{OLD}"], keep=keep)
    folder = tmp_path / "revisions" / OLD
    assert sorted(path.parent.name for path in folder.glob("*/checkpoints")) == sorted(attempts if left is None else left)
    assert layout.is_complete(folder / attempts[-1] / "artifact")
    assert layout.is_complete(folder / "evaluations" / "tuned-k")


def test_checkpoints_of_a_revision_without_an_artifact_all_stay(volume: Path) -> None:
    (volume / "revisions" / OLD / "a2-bbbbbbbb" / "artifact" / layout.COMMIT).unlink()
    before = counting(volume)
    result = cleaned(volume, checkpoints_of=[f"revisions/{OLD}", "revisions/never-made"])
    assert (result["folders"], result["kept"]) == (0, [f"revisions/{OLD}: it has no artifact"])
    assert counting(volume) == before


@pytest.mark.parametrize("link", ["revisions", f"revisions/{OLD}", f"revisions/{OLD}/a1-aaaaaaaa"])
def test_a_link_on_the_way_is_refused(link: str, volume: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    revision(outside, OLD)
    (volume / link).rename(volume / "moved")
    (volume / link).symlink_to(outside / link, target_is_directory=True)
    before = counting(outside)
    for folders, checkpoints_of in (([f"{link}/a1-aaaaaaaa/checkpoints"], []), ([], [f"revisions/{OLD}"])):
        with pytest.raises(UserError, match="is a symbolic link or a file"):
            cleaned(volume, *folders, checkpoints_of=checkpoints_of)
    assert counting(outside) == before


def test_links_inside_go_and_what_they_lead_to_stays(volume: Path, tmp_path: Path) -> None:
    outside = committed(tmp_path / "outside")
    (volume / "data" / OLD / "there").symlink_to(outside, target_is_directory=True)
    (volume / "data" / OLD / "file").symlink_to(outside / "weights")
    cleaned(volume, f"data/{OLD}")
    assert layout.is_complete(outside)
    assert layout.verify(outside)
    assert not (volume / "data" / OLD).exists()


OUTSIDE = (
    "models/m",
    "data",
    "revisions",
    "/work/data/x",
    "data/../models/m",
    "data/..",
    "revisions//x",
    "data/.hidden",
    "",
    ".",
    "data/x/",
)


@pytest.mark.parametrize("folder", OUTSIDE)
def test_a_path_outside_of_the_roots_ends_with_20(folder: str, volume: Path, tmp_path: Path) -> None:
    before = counting(volume)
    (tmp_path / "run.json").write_text(json.dumps(config(volume, [f"data/{OLD}", folder])))
    assert main(["clean", "--config", str(tmp_path / "run.json")]) == 20
    message = json.loads((tmp_path / "termination").read_text())
    assert message["error"]["reason"] == "ConfigurationInvalid"
    assert "clean.folders.1" in message["error"]["message"]
    assert counting(volume) == before, "nothing is removed when anything is wrong"


def test_the_result_is_the_termination_message(volume: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(config(volume, WHOLE)))
    assert main(["clean", "--config", str(tmp_path / "run.json")]) == 0
    message = json.loads((tmp_path / "termination").read_text())
    assert (message["stage"], message["folders"]) == ("clean", 2)
    assert message["bytes"] > 70
