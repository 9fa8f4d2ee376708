"""Chat templates as model folders carry them, rendered in a sandbox with the names that such templates expect."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from catena.kit.errors import Invalid

Render = Callable[[Sequence[Mapping[str, str]]], str]
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class GenerationTag(Extension):
    """`{% generation %}` marks what training learns from; rendering leaves it as it is."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 reads it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The body alone."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def read_template(folder: Path, now: Callable[[], float]) -> Render | None:
    """The folder's chat template, ready for the assistant's turn; None when it has none. `now` is for its dates.

    The result raises Invalid (`bad_messages`) for messages that the template refuses.
    """
    config = read_json(folder / "tokenizer_config.json")
    source = _source(folder, config)
    if source is None:
        return None
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.fromtimestamp(now(), UTC).strftime(form)
    template = environment.from_string(source)
    specials = {name: _content(config.get(name)) for name in SPECIAL if config.get(name)}

    def render(messages: Sequence[Mapping[str, str]]) -> str:
        try:
            return template.render(
                messages=list(messages), tools=None, documents=None, add_generation_prompt=True, **specials
            )
        except (TemplateError, TypeError) as error:
            raise Invalid(f"the chat template refuses the messages: {error}", code="bad_messages") from error

    return render


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty when there is no such file."""
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Any]) if path.exists() else {}


def _source(folder: Path, config: Mapping[str, Any]) -> str | None:
    plain = folder / "chat_template.jinja"
    if plain.exists():
        return plain.read_text()
    found = read_json(folder / "chat_template.json").get("chat_template") or config.get("chat_template")
    if isinstance(found, list):
        named = {each["name"]: each["template"] for each in found}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _content(token: object) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _refuse(message: str) -> str:
    raise TemplateError(message)


def _to_json(value: object, indent: int | None = None, **_: object) -> str:
    raw = msgspec.json.encode(value)
    return (msgspec.json.format(raw, indent=indent) if indent else raw).decode()
