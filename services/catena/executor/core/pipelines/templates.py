"""Logic-less templates: `{name.path}` is replaced by a value, and nothing else can happen.

No loops, no filters, no calls: a template's cost is bounded by what it inserts, unlike a sandboxed template language.
A template that is one placeholder gives the value itself, not its text. `{{name}}` stands for a literal `{name}`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from catena.kit.errors import Invalid

MOST_CHARS = 1_000_000
_PATH = r"[A-Za-z_][\w-]*(?:\.[\w-]+)*"
_PLACE = re.compile(rf"\{{\{{({_PATH})\}}\}}|\{{({_PATH})\}}")


def fill(template: Any, scope: Mapping[str, Any]) -> Any:
    """`template`, at any depth of lists and mappings, with values of `scope`.

    Raises Invalid when a name leads nowhere (`no_such_value`) or a text grows beyond a million characters.
    """
    if isinstance(template, str):
        return _fill_text(template, scope)
    if isinstance(template, Mapping):
        return {key: fill(value, scope) for key, value in template.items()}
    if isinstance(template, Sequence):
        return [fill(value, scope) for value in template]
    return template


def text(template: Any, scope: Mapping[str, Any]) -> str:
    """As `fill`, but always a text."""
    return as_text(fill(template, scope))


def as_text(value: Any) -> str:
    """A value as people read it: text as it is, nothing as nothing, the rest as JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else msgspec.json.encode(value).decode()


def names(template: Any) -> Iterator[str]:
    """The names that a template begins its paths with."""
    if isinstance(template, str):
        yield from (found[2].partition(".")[0] for found in _PLACE.finditer(template) if found[2])
    elif isinstance(template, Mapping):
        for value in template.values():
            yield from names(value)
    elif isinstance(template, Sequence):
        for value in template:
            yield from names(value)


def reach(value: Any, path: str) -> Any:
    """What `path` (`a.b.0`) leads to inside `value`. Raises Invalid (`no_such_value`)."""
    for part in path.split("."):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, ValueError, TypeError):
            known = f"; there is {', '.join(map(str, list(value)[:10]))}" if isinstance(value, Mapping) else ""
            raise Invalid(f"nothing at {part!r} of {path!r}{known}", code="no_such_value") from None
    return value


def _fill_text(template: str, scope: Mapping[str, Any]) -> Any:
    whole = _PLACE.fullmatch(template)
    if whole and whole[2]:
        return reach(scope, whole[2])
    made: list[str] = []
    size = end = 0
    for found in _PLACE.finditer(template):
        said = f"{{{found[1]}}}" if found[1] else as_text(reach(scope, found[2]))
        made += [template[end : found.start()], said]
        size += len(said)
        end = found.end()
        if size > MOST_CHARS:
            raise Invalid(f"a template grew beyond {MOST_CHARS} characters; insert less", code="template_too_large")
    return "".join([*made, template[end:]])
