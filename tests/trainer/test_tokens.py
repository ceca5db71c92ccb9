"""Tokens that are kept from one revision to the next."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer import layout
from finetune_trainer.data import tokens
from finetune_trainer.data.formats import Row
from finetune_trainer.data.preference import joined
from finetune_trainer.data.templates import Encoded

ROW = Row("", 0, (), "")
ONE = Encoded(ROW, (1, 2, 3), (False, True, True))
KINDS = {"conversations": (ONE, False), "pairs": (joined(ROW, ONE, ONE), True)}


def mapped(folder: Path) -> list[str]:
    """The files of `folder` that this process has in its memory."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if f"{folder}/" in line]


@pytest.mark.parametrize(("item", "pairs"), KINDS.values(), ids=KINDS)
def test_no_file_of_the_folder_is_open_when_it_is_replaced(item: Any, pairs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tokens"
    with tokens.kept(folder, "key", pairs=pairs) as known:
        known.add([item], [b"one"])
    removed: list[list[str]] = []
    remove = shutil.rmtree

    def watched(path: Path, **options: Any) -> None:
        if path == folder:
            removed.append(mapped(folder))
        remove(path, **options)

    monkeypatch.setattr(layout.shutil, "rmtree", watched)
    with tokens.kept(folder, "key", pairs=pairs) as known:
        assert known.find([ROW, ROW], [b"one", b"two"]) == [item, None]
        assert mapped(folder)
        known.add([item], [b"two"])
    assert removed == [[]]
    with tokens.kept(folder, "key", pairs=pairs) as known:
        assert known.find([ROW, ROW], [b"one", b"two"]) == [item, item]
