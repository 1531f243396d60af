"""A model of a disk that loses power: which files are left depends on what was flushed with fsync."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from .tracing import Operation


class Node:
    """A file or a folder.

    Attributes:
        content: Content of a file; None for a folder.
        flushed: Content of a file at its last fsync; None if there was none.
        entries: Nodes in a folder by name.
        listed: Entries of a folder at its last fsync.
    """

    def __init__(self, content: bytes | None) -> None:
        self.content = content
        self.flushed: bytes | None = None
        self.entries: dict[str, Node] = {}
        self.listed: dict[str, Node] = {}


Tree = dict[str, bytes | None]  # content of files and None for folders, by path relative to the root


class Disk:
    """The files below a folder, and which of them survive a power cut.

    Args:
        folder: Folder whose files are on the disk at the start.
    """

    def __init__(self, folder: Path) -> None:
        self.root = _loaded(folder)

    def apply(self, operation: Operation) -> None:
        """Apply an operation of a command."""
        getattr(self, f"_{operation.kind}")(operation)

    def _place(self, path: str) -> tuple[Node, str]:
        parts = PurePosixPath(path).parts
        node = self.root
        for part in parts[:-1]:
            node = node.entries[part]
        return node, parts[-1]

    def _node(self, path: str) -> Node | None:
        if path == ".":
            return self.root
        try:
            parent, name = self._place(path)
        except KeyError:
            return None
        return parent.entries.get(name)

    def _create(self, operation: Operation) -> None:
        parent, name = self._place(operation.path)
        parent.entries.setdefault(name, Node(b""))

    def _mkdir(self, operation: Operation) -> None:
        parent, name = self._place(operation.path)
        parent.entries[name] = Node(None)

    def _write(self, operation: Operation) -> None:
        node = self._node(operation.path)
        if node is None or node.content is None:  # a deleted file
            return
        place = operation.offset if operation.offset >= 0 else len(node.content)
        before = node.content[:place].ljust(place, b"\0")
        node.content = before + operation.data + node.content[place + len(operation.data) :]

    def _truncate(self, operation: Operation) -> None:
        node = self._node(operation.path)
        if node is not None and node.content is not None:
            node.content = node.content[: operation.offset].ljust(operation.offset, b"\0")

    def _rename(self, operation: Operation) -> None:
        parent, name = self._place(operation.path)
        node = parent.entries.pop(name)
        if operation.other:
            other, new = self._place(operation.other)
            other.entries[new] = node

    def _exchange(self, operation: Operation) -> None:
        (parent, name), (other, new) = self._place(operation.path), self._place(operation.other)
        parent.entries[name], other.entries[new] = other.entries[new], parent.entries[name]

    def _link(self, operation: Operation) -> None:
        node = self._node(operation.path)
        parent, name = self._place(operation.other)
        if node is not None:
            parent.entries[name] = node

    def _unlink(self, operation: Operation) -> None:
        parent, name = self._place(operation.path)
        del parent.entries[name]

    _rmdir = _unlink

    def _sync(self, operation: Operation) -> None:
        node = self._node(operation.path)
        if node is not None:
            node.flushed, node.listed = node.content, dict(node.entries)

    def states(self) -> Iterator[tuple[str, Tree]]:
        """Iterate over the trees that a crash at this moment may leave, and what they stand for."""
        yield "killed", _tree(self.root, lambda node: node.content, False)
        yield "power cut, unsynced data is missing", _tree(self.root, lambda node: node.flushed or b"", False)
        yield "power cut, unsynced data is zero", _tree(self.root, _zeroed, False)
        yield "power cut, unsynced data is torn", _tree(self.root, _torn, False)
        yield "power cut, only synced names are there", _tree(self.root, lambda node: node.flushed or b"", True)


def _loaded(path: Path) -> Node:
    if path.is_dir():
        node = Node(None)
        node.entries = {inner.name: _loaded(inner) for inner in path.iterdir()}
        node.listed = dict(node.entries)
        return node
    node = Node(path.read_bytes())
    node.flushed = node.content
    return node


def _zeroed(node: Node) -> bytes:
    """Return the content of a file whose size was stored, but not the data after the last fsync."""
    assert node.content is not None
    if node.flushed == node.content:
        return node.content
    kept = node.flushed if node.flushed is not None and node.content.startswith(node.flushed) else b""
    return kept.ljust(len(node.content), b"\0")


def _torn(node: Node) -> bytes:
    """Return the content of a file of which half of the data after the last fsync was stored."""
    assert node.content is not None
    if node.flushed == node.content:
        return node.content
    kept = len(node.flushed) if node.flushed is not None and node.content.startswith(node.flushed) else 0
    return node.content[: (kept + len(node.content)) // 2]


def _tree(root: Node, content, listed: bool) -> Tree:
    """Return the files below a folder.

    Args:
        root: The folder.
        content: Function that returns the content of a file.
        listed: Whether only entries are there that were flushed.
    """
    found: Tree = {}

    def walk(node: Node, prefix: str) -> None:
        for name, inner in (node.listed if listed else node.entries).items():
            found[prefix + name] = None if inner.content is None else content(inner)
            if inner.content is None:
                walk(inner, f"{prefix}{name}/")

    walk(root, "")
    return found


def write_tree(tree: Tree, folder: Path) -> None:
    """Write the files of a tree below a folder, which is empty."""
    for path, content in tree.items():
        if content is None:
            (folder / path).mkdir(parents=True, exist_ok=True)
        else:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
