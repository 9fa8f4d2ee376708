"""What an answer comes to, so that answers can vote: a number, JSON, code or a choice out of the words around it."""

import ast
import re
from collections.abc import Callable, Mapping

import msgspec

from catena.executor.core.chat import ChatRequest, Choice
from catena.executor.core.checks import fits
from catena.executor.core.extraction import extract_json
from catena.executor.core.normal import normal, normal_choice
from catena.kit.errors import Invalid

_THINK = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_MARKS = (
    re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL),
    re.compile(r"\\boxed\{([^{}]*)\}"),
    re.compile(r"^####[ \t]*(\S.*)$", re.MULTILINE),
    re.compile(r"\banswer(?: is)?\s*[:=][ \t]*(\S[^\n]*)", re.IGNORECASE),
    re.compile(r"\banswer is[ \t]+(\S[^\n]*)", re.IGNORECASE),
)
"""How models mark the result of their reasoning: by tag, LaTeX's box, GSM8K's hashes, or in so many words."""
_NUMBER = re.compile(r"[-+]?\$?\d[\d,]*(?:\.\d+)?%?")
_LETTER = re.compile(r"\A[\W_]*([A-Za-z])[\W_]*(?:\Z|[).:]\s)")
_IN_BRACKETS = re.compile(r"\(([A-Z])\)")
_FENCE = re.compile(r"```[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
MOST_CODE_CHARS = 20_000


def form_of(choice: Choice, request: ChatRequest, kind: str) -> str | None:
    """The normal form in which `choice` votes; None: it has none of this `kind`, or breaks what was asked for.

    `kind` as `settings.answer`: `auto` compares what the request constrains, else what the answer marks as its result,
    else all its words. Tools asked for are always compared as they are.
    """
    if choice.message.tool_calls:
        return normal_choice(choice)
    if not choice.text.strip() or fits(request, _bare(choice.text)) is False:
        return None
    return KINDS[kind](choice.text) if kind in KINDS else _auto(choice, request)


def marked(text: str) -> str | None:
    """What `text` says its result is, by the last mark of the clearest kind; None: it says nothing of the sort."""
    bare = _bare(text)
    for mark in _MARKS:
        found = mark.findall(bare)
        if found:
            return str(found[-1]).strip()
    return None


def number(text: str) -> str | None:
    """The marked number, else the last one."""
    found = _NUMBER.findall(marked(text) or "") or _NUMBER.findall(_bare(text))
    return normal(found[-1].rstrip(",")) if found else None


def choice_of(text: str) -> str | None:
    """The letter of the option chosen: marked, alone at the start, or the last one in brackets."""
    for part in (marked(text), _bare(text)):
        found = _LETTER.match(part) if part else None
        if found:
            return found[1].upper()
    listed = _IN_BRACKETS.findall(_bare(text))
    return listed[-1] if listed else None


def json_of(text: str) -> str | None:
    """The first JSON object or array, in one spelling."""
    try:
        return msgspec.json.encode(extract_json(_bare(text)), order="sorted").decode()
    except Invalid:
        return None


def code(text: str) -> str | None:
    """The first fenced block, or all of it: Python without its comments and layout, other code without blank ends."""
    bare = _bare(text)
    fenced = _FENCE.search(bare)
    said = (fenced[1] if fenced else bare)[:MOST_CODE_CHARS].strip()
    try:
        return ast.unparse(ast.parse(said)) or None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "\n".join(line.rstrip() for line in said.splitlines() if line.strip()) or None


def _auto(choice: Choice, request: ChatRequest) -> str:
    result = None if request.constrained else marked(choice.text)
    return normal_choice(choice) if result is None else normal(result)


def _bare(text: str) -> str:
    return _THINK.sub("", text).strip()


KINDS: Mapping[str, Callable[[str], str | None]] = {
    "text": normal,
    "number": number,
    "choice": choice_of,
    "json": json_of,
    "code": code,
}
