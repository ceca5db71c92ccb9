"""What a disk may hold after the power went: a folder's tree, kept twice, as processes see it and as it was last flushed.

The rules are the weakest that POSIX allows: a file's content is safe once the file was synced, a name once its folder was. Real
file systems keep more (their journals write names in order), none keeps less.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.operations import Operation


@dataclass
class File:
    """Content as it is, and as it is safe."""

    data: bytes = b""
    safe: bytes = b""


@dataclass
class Folder:
    """Names as they are, and as they are safe."""

    names: dict[str, Node] = field(default_factory=dict)
    safe: dict[str, Node] = field(default_factory=dict)


@dataclass
class Link:
    """A symbolic link."""

    target: str


Node = File | Folder | Link
Tree = dict[str, bytes | str | None]


class Volume:
    """A folder that operations are applied to."""

    def __init__(self, folder: Path) -> None:
        self.root = _read(folder)

    def apply(self, operation: Operation) -> None:
        """Make this change, as the kernel made it."""
        name, parent, leaf = operation.name, self._folder(os.path.dirname(operation.path)), os.path.basename(operation.path)
        if name == "create":
            parent.names[leaf] = File()
        elif name == "mkdir":
            parent.names[leaf] = Folder()
        elif name == "symlink":
            parent.names[leaf] = Link(os.fsdecode(operation.data))
        elif name in ("unlink", "rmdir"):
            del parent.names[leaf]
        elif name in ("rename", "link"):
            node = parent.names.pop(leaf) if name == "rename" else parent.names[leaf]
            self._folder(os.path.dirname(operation.other)).names[os.path.basename(operation.other)] = node
        elif name != "mode":
            self._change(self._node(operation.path), operation)

    def _change(self, node: Node, operation: Operation) -> None:
        if operation.name == "sync":
            if isinstance(node, Folder):
                node.safe = dict(node.names)
            elif isinstance(node, File):
                node.safe = node.data
            return
        assert isinstance(node, File), operation
        padded = node.data.ljust(operation.offset, b"\0")
        if operation.name == "write":
            node.data = padded[: operation.offset] + operation.data + padded[operation.offset + len(operation.data) :]
        else:
            assert operation.name == "truncate", operation
            node.data = padded[: operation.offset]

    def tree(self, *, names_safe: bool = False, data_safe: bool = False) -> Tree:
        """Relative path → content (None for a folder, the target for a link): as it is, or what is safe of it."""
        return dict(_walk(self.root, "", names_safe, data_safe))

    def _node(self, path: str) -> Node:
        node: Node = self.root
        for part in Path(path).parts:
            assert isinstance(node, Folder), path
            node = node.names[part]
        return node

    def _folder(self, path: str) -> Folder:
        node = self._node(path)
        assert isinstance(node, Folder), path
        return node


def write(tree: Tree, folder: Path) -> None:
    """Make `tree` a real, new folder."""
    folder.mkdir(parents=True)
    for path, content in sorted(tree.items()):
        if content is None:
            (folder / path).mkdir()
        elif isinstance(content, str):
            (folder / path).symlink_to(content)
        else:
            (folder / path).write_bytes(content)


def _read(path: Path) -> Folder:
    folder = Folder()
    for entry in path.iterdir():
        node: Node
        if entry.is_symlink():
            node = Link(os.readlink(entry))
        elif entry.is_dir():
            node = _read(entry)
        else:
            content = entry.read_bytes()
            node = File(content, content)
        folder.names[entry.name] = node
    folder.safe = dict(folder.names)
    return folder


def _walk(folder: Folder, prefix: str, names_safe: bool, data_safe: bool) -> list[tuple[str, bytes | str | None]]:
    found: list[tuple[str, bytes | str | None]] = []
    for name, node in (folder.safe if names_safe else folder.names).items():
        path = f"{prefix}{name}"
        if isinstance(node, Folder):
            found += [(path, None), *_walk(node, f"{path}/", names_safe, data_safe)]
        else:
            found.append((path, node.target if isinstance(node, Link) else node.safe if data_safe else node.data))
    return found
