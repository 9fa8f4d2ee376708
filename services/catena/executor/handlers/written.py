"""Pipelines as people write them: YAML, read strictly."""

from typing import Any

import msgspec
import yaml

from catena.executor.core.steps import Pipeline, Step
from catena.kit.errors import Invalid

MOST_CHARS = 64_000
"""The reader takes a millisecond for some hundred characters, and everybody waits."""


class WrittenStep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A step as in `core.steps`."""

    name: str
    type: str
    config: dict[str, Any] = msgspec.field(default_factory=dict)
    on_error: str = "fail"
    default_output: Any = None
    timeout_s: float = 0.0


class Written(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pipeline as in `core.steps`."""

    name: str
    steps: list[WrittenStep]
    description: str = ""


class _Plain(yaml.SafeLoader):
    """YAML without aliases: ten lines of them can stand for more than memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(None, None, "aliases are not allowed", None)
        return super().compose_node(parent, index)


def read_pipeline(text: str) -> Pipeline:
    """The pipeline that the text describes, still to be checked. Raises Invalid (`bad_pipeline`) with the place."""
    if len(text) > MOST_CHARS:
        raise _bad(f"{len(text)} characters of YAML > {MOST_CHARS}; send it as fields")
    try:
        written = msgspec.convert(yaml.load(text, Loader=_Plain), Written)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise _bad(f"no YAML: {' '.join(str(error).split())[:300]}") from error
    except msgspec.ValidationError as error:
        raise _bad(str(error)) from error
    steps = tuple(Step(**msgspec.structs.asdict(step)) for step in written.steps)
    return Pipeline(name=written.name, steps=steps, description=written.description)


def _bad(message: str) -> Invalid:
    return Invalid(f"pipeline: {message}", code="bad_pipeline")
