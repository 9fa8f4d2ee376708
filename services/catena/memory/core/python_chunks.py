"""Python by its syntax tree: imports, docstrings, functions, classes, methods, and the statements between them.

tree-sitter reads broken source too; what it cannot place becomes a TEXT chunk, so that no line is lost.
"""

import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import tree_sitter_python
from tree_sitter import Language, Node, Parser

from catena.memory.core.text_chunks import split_block
from catena.memory.core.types import ChunkType, Piece

_IMPORTS = {"import_statement", "import_from_statement", "future_import_statement"}
_DEFINITIONS = {"function_definition", "class_definition"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """A file being cut: its bytes, its module's name, and how many characters a piece may have."""

    raw: bytes
    module: str
    limit: int

    def between(self, first: Node, last: Node) -> str:
        """The source from `first` to `last`, two siblings or one node, moved left as a block."""
        return self.block(first, self.raw[first.start_byte : last.end_byte])

    def block(self, first: Node, text: bytes) -> str:
        """`text`, which begins where `first` does, moved left by the indentation of `first`."""
        indent = self.raw[self.raw.rfind(b"\n", 0, first.start_byte) + 1 : first.start_byte]
        lead = indent if not indent.strip() else b""
        return textwrap.dedent((lead + text).decode(errors="replace")).strip("\n").rstrip()


def chunk_python(text: str, path: str, limit: int) -> list[Piece]:
    """Pieces in the order of their lines; a piece longer than `limit` characters is cut between statements or lines."""
    raw = text.encode(errors="replace")
    source = _Source(raw=raw, module=module_name(path), limit=limit)
    root = Parser(Language(tree_sitter_python.language())).parse(raw).root_node
    pieces = [piece for nodes in _runs(root.children) for piece in _run(source, nodes)]
    return sorted(pieces, key=lambda piece: (piece.first_line, piece.type != ChunkType.CLASS, piece.last_line))


def module_name(path: str) -> str:
    """`room/core.py` to `core`, a package's `__init__.py` to the package's name; empty stays empty."""
    file = PurePosixPath(path)
    return file.parent.name if file.stem == "__init__" else file.stem


def _runs(nodes: list[Node]) -> Iterator[list[Node]]:
    """Group neighbours that belong together: imports, and loose statements; a definition stands alone."""
    held: list[Node] = []
    for node in nodes:
        kind = _kind(node)
        if held and (kind != _kind(held[0]) or kind in {"definition", "docstring"}):
            yield held
            held = []
        held.append(node)
    if held:
        yield held


def _kind(node: Node) -> str:
    if node.type in _IMPORTS:
        return "import"
    if _definition(node) is not None:
        return "definition"
    return "docstring" if _is_module_docstring(node) else "loose"


def _run(source: _Source, nodes: list[Node]) -> list[Piece]:
    kind = _kind(nodes[0])
    if kind == "definition":
        return _define(source, nodes[0], "")
    if kind == "docstring":
        text = _string(nodes[0].children[0])
        return _cut(source, ChunkType.DOCSTRING, text, nodes[0], source.module, text)
    type_ = ChunkType.IMPORT if kind == "import" else ChunkType.TEXT
    return _cut(source, type_, source.between(nodes[0], nodes[-1]), nodes[0], source.module)


def _define(source: _Source, node: Node, prefix: str) -> list[Piece]:
    inner = _definition(node)
    assert inner is not None
    name = ".".join(filter(None, (prefix, _text(inner.child_by_field_name("name")))))
    body = inner.child_by_field_name("body")
    docstring = _docstring(body)
    if inner.type == "function_definition":
        return _define_function(source, ChunkType.METHOD if prefix else ChunkType.FUNCTION, node, name, docstring)
    members = [child for child in (body.children if body else []) if _definition(child) is not None]
    first, last = node.start_point.row + 1, node.end_point.row + 1
    pieces = [
        Piece(type=ChunkType.CLASS, text=part, first_line=first, last_line=last, name=name, docstring=docstring)
        for part, _, _ in split_block(_outline(source, node, members), first, source.limit)
    ]
    for member in members:
        pieces += _define(source, member, name)
    return pieces


def _outline(source: _Source, node: Node, members: list[Node]) -> str:
    """A class without its members' bodies: header, docstring, attributes, and the members' signatures."""
    parts, at = [], node.start_byte
    for member in members:
        inner = _definition(member)
        body = inner.child_by_field_name("body") if inner is not None else None
        parts += [source.raw[at : body.start_byte if body else member.end_byte].rstrip(), b" ..."]
        at = member.end_byte
    return source.block(node, b"".join([*parts, source.raw[at : node.end_byte]]))


def _define_function(source: _Source, type_: ChunkType, node: Node, name: str, docstring: str) -> list[Piece]:
    """A function whole, or, when it is too long, in parts that begin at statements of its body."""
    inner = _definition(node)
    body = inner.child_by_field_name("body") if inner is not None else None
    whole = source.between(node, node)
    if len(whole) <= source.limit or body is None:
        return _cut(source, type_, whole, node, name, docstring)
    pieces, start, end = [], node, body.children[0]
    for statement in body.children[1:]:
        if statement.end_byte - start.start_byte > source.limit:
            pieces += _cut(source, type_, source.between(start, end), start, name, docstring)
            start = statement
        end = statement
    return pieces + _cut(source, type_, source.between(start, end), start, name, docstring)


def _cut(source: _Source, type_: ChunkType, text: str, node: Node, name: str, docstring: str = "") -> list[Piece]:
    return [
        Piece(type=type_, text=part, first_line=first, last_line=last, name=name, docstring=docstring)
        for part, first, last in split_block(text, node.start_point.row + 1, source.limit)
    ]


def _definition(node: Node) -> Node | None:
    """The function or class that `node` is, seen through its decorators."""
    inner = node.child_by_field_name("definition") if node.type == "decorated_definition" else node
    return inner if inner is not None and inner.type in _DEFINITIONS else None


def _is_module_docstring(node: Node) -> bool:
    if node.type != "expression_statement" or node.children[0].type != "string":
        return False
    before = node.prev_named_sibling
    while before is not None and before.type == "comment":
        before = before.prev_named_sibling
    return before is None


def _docstring(body: Node | None) -> str:
    for child in body.named_children if body else []:
        if child.type == "expression_statement" and child.children[0].type == "string":
            return _string(child.children[0])
        if child.type != "comment":
            break
    return ""


def _string(node: Node) -> str:
    return inspect.cleandoc("".join(_text(child) for child in node.children if child.type == "string_content"))


def _text(node: Node | None) -> str:
    return (node.text or b"").decode(errors="replace") if node is not None else ""
