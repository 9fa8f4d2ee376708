"""Chat templates as model folders carry them, rendered in a sandbox with the names that such templates expect."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from catena.kit.errors import Invalid

TOOLS = re.compile(r"\btools\b")
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class GenerationTag(Extension):
    """`{% generation %}` marks what training learns from; rendering leaves it as it is."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 reads it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The body alone."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Render:
    """A chat template, ready for the assistant's turn. `knows_tools`: it writes those that it is given."""

    def __init__(
        self, plain: Template, with_tools: Template, specials: Mapping[str, str], *, knows_tools: bool
    ) -> None:
        """Some folders keep a template of its own for conversations with tools."""
        self.knows_tools = knows_tools
        self._plain = plain
        self._with_tools = with_tools
        self._specials = specials

    def __call__(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """The conversation as text. Raises Invalid (`bad_messages`) for messages that the template refuses."""
        template = self._with_tools if tools else self._plain
        try:
            return template.render(
                messages=list(messages),
                tools=list(tools) or None,
                documents=None,
                add_generation_prompt=True,
                **self._specials,
            )
        except (TemplateError, TypeError) as error:
            raise Invalid(f"the chat template refuses the messages: {error}", code="bad_messages") from error


def read_template(folder: Path, now: Callable[[], float]) -> Render | None:
    """The folder's chat template; None when it has none. `now` is for its dates."""
    config = read_json(folder / "tokenizer_config.json")
    sources = _sources(folder, config)
    source = sources.get("default")
    if source is None:
        return None
    with_tools = sources.get("tool_use", source)
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.fromtimestamp(now(), UTC).strftime(form)
    specials = {name: _content(config.get(name)) for name in SPECIAL if config.get(name)}
    return Render(
        environment.from_string(source),
        environment.from_string(with_tools),
        specials,
        knows_tools=TOOLS.search(with_tools) is not None,
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty when there is no such file."""
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Any]) if path.exists() else {}


def _sources(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The folder's templates by name; where there is but one, it is the default."""
    plain = folder / "chat_template.jinja"
    if plain.exists():
        others = sorted((folder / "additional_chat_templates").glob("*.jinja"))
        return {"default": plain.read_text()} | {other.stem: other.read_text() for other in others}
    found = read_json(folder / "chat_template.json").get("chat_template") or config.get("chat_template")
    if isinstance(found, list):
        return {each["name"]: each["template"] for each in found}
    return {"default": found} if isinstance(found, str) else {}


def _content(token: object) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _refuse(message: str) -> str:
    raise TemplateError(message)


def _to_json(value: object, *, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False) -> str:
    """As transformers writes it, blanks included, since models were trained on just that."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)
