"""Text and Markdown by structure: headings, then paragraphs, then sentences; code fences stay whole where they fit."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from catena.memory.core.types import ChunkType, Piece

_HEADING = re.compile(r"^(#{1,6})\s+(.*?)\s*#*\s*$")
_FENCE = re.compile(r"^\s*(```|~~~)")
_SENTENCE_END = re.compile(r"[.!?]\s+|[\u3002\uff01\uff1f]|\n")


@dataclass(frozen=True, slots=True)
class _Block:
    text: str
    first_line: int
    last_line: int


def chunk_text(text: str, limit: int) -> list[Piece]:
    """Plain text as pieces of at most `limit` characters: whole paragraphs merged, long ones cut between sentences."""
    return [_piece(part, "") for part in _merge(_paragraphs(text.split("\n"), 1), limit)]


def chunk_markdown(text: str, limit: int) -> list[Piece]:
    """Markdown as pieces that never cross a heading; a piece's name is its path of headings, `Guide > Install`."""
    pieces: list[Piece] = []
    path: list[tuple[int, str]] = []
    for heading, lines, first_line in _sections(text.split("\n")):
        if heading is not None:
            level, title = heading
            path = [*((depth, name) for depth, name in path if depth < level), (level, title)]
        name = " > ".join(title for _, title in path)
        pieces += [_piece(part, name) for part in _merge(_paragraphs(lines, first_line), limit)]
    return pieces


def split_block(text: str, first_line: int, limit: int) -> list[tuple[str, int, int]]:
    """A stretch cut into parts of at most `limit` characters at line ends, each with its first and last line."""
    blocks = [_Block(line, first_line + index, first_line + index) for index, line in enumerate(text.split("\n"))]
    return [(part.text, part.first_line, part.last_line) for part in _merge(blocks, limit, joint="\n")]


def _piece(block: _Block, name: str) -> Piece:
    return Piece(
        type=ChunkType.TEXT, text=block.text, first_line=block.first_line, last_line=block.last_line, name=name
    )


def _sections(lines: list[str]) -> Iterator[tuple[tuple[int, str] | None, list[str], int]]:
    heading: tuple[int, str] | None = None
    start, fenced = 0, False
    for index, line in enumerate(lines):
        if _FENCE.match(line):
            fenced = not fenced
        found = None if fenced else _HEADING.match(line)
        if found:
            yield heading, lines[start:index], start + 1
            heading, start = (len(found[1]), found[2]), index
    yield heading, lines[start:], start + 1


def _paragraphs(lines: list[str], first_line: int) -> list[_Block]:
    blocks: list[_Block] = []
    held: list[str] = []
    fenced = False
    for number, line in enumerate([*lines, ""], first_line):
        if line.strip() or fenced:
            held.append(line.rstrip())
        elif held:
            blocks.append(_Block("\n".join(held), number - len(held), number - 1))
            held = []
        if _FENCE.match(line):
            fenced = not fenced
    if held:
        end = first_line + len(lines)
        blocks.append(_Block("\n".join(held).rstrip(), end - len(held) + 1, end - 1))
    return [block for block in blocks if block.text.strip()]


def _merge(blocks: list[_Block], limit: int, joint: str = "\n\n") -> Iterator[_Block]:
    held: _Block | None = None
    for block in (part for whole in blocks for part in _cut(whole, limit)):
        if held is not None and len(held.text) + len(joint) + len(block.text) <= limit:
            held = _Block(held.text + joint + block.text, held.first_line, block.last_line)
            continue
        if held is not None and held.text.strip():
            yield held
        held = block
    if held is not None and held.text.strip():
        yield held


def _cut(block: _Block, limit: int) -> Iterator[_Block]:
    """Parts of at most `limit` characters: after a sentence where one ends, else between words, else anywhere."""
    if len(block.text) <= limit:
        yield block
        return
    start = 0
    while start < len(block.text):
        end = start + _cut_at(block.text[start : start + limit + 1], limit)
        part = block.text[start:end]
        line = block.first_line + block.text.count("\n", 0, start + len(part) - len(part.lstrip()))
        part = part.strip("\n").rstrip() if start == 0 else part.strip()
        if part.strip():
            yield _Block(part, line, line + part.count("\n"))
        start = end


def _cut_at(window: str, limit: int) -> int:
    if len(window) <= limit:
        return len(window)
    sentences = [found.end() for found in _SENTENCE_END.finditer(window, limit // 4, limit)]
    words = [window.rfind(space, limit // 4, limit) + 1 for space in " \n\t"]
    return sentences[-1] if sentences else max(words) or limit
