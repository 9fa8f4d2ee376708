"""How models are named: `base`, `base@adapter`, `base@adapter:tag`, `base@{a=0.7,b:2=0.3}`, `base@auto`.

A tag is a version (`3`, `1.2.0`) or an alias (`stable`, `canary`), and no tag means `stable`. The two cannot be
confused: versions begin with a digit, aliases with a letter. `auto` is no adapter's name: it stands for the best one.
"""

import math
import re
from dataclasses import dataclass

from catena.adapters.core.errors import BadModel

STABLE = "stable"
AUTO = "auto"
MAX_PARTS = 8
MAX_WEIGHT = 8.0
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,95}\Z")
VERSION = re.compile(r"(\d{1,9}|\d{1,9}\.\d{1,9}\.\d{1,9}(-[0-9A-Za-z.-]{1,40})?)\Z")
ALIAS = re.compile(r"[a-z][a-z0-9-]{0,39}\Z")


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """An adapter of some base by name and tag, and its share in a composition."""

    name: str
    tag: str = STABLE
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelRef:
    """What a model's name says: a base, and no, one or several adapters, or `auto`: whichever is best."""

    base: str
    adapters: tuple[AdapterRef, ...] = ()
    auto: bool = False


def parse(model: str) -> ModelRef:
    """Read a model's name. Raises BadModel."""
    base, at, rest = model.partition("@")
    if not base or (at and not rest):
        raise _bad(model)
    if not at:
        return ModelRef(base)
    if rest == AUTO:
        return ModelRef(base, auto=True)
    if rest.startswith("{") and rest.endswith("}"):
        return ModelRef(base, _composition(model, rest[1:-1]))
    return ModelRef(base, (_adapter(model, rest),))


def parse_one(model: str) -> tuple[str, AdapterRef]:
    """The base and the single adapter that `model` names. Raises BadModel when it names none or several."""
    ref = parse(model)
    if len(ref.adapters) != 1:
        raise BadModel(f"{model!r} should name one adapter: base@adapter:version")
    return ref.base, ref.adapters[0]


def full_name(base: str, name: str, version: str) -> str:
    """`base@adapter:version`."""
    return f"{base}@{name}:{version}"


def is_version(tag: str) -> bool:
    """Whether a tag is a version rather than an alias."""
    return VERSION.match(tag) is not None


def check_alias(alias: str) -> str:
    """The alias itself. Raises BadModel when it could be taken for a version or cannot be written in a name."""
    if not ALIAS.match(alias):
        raise BadModel(f"alias {alias!r} should begin with a letter and hold up to 40 of a-z 0-9 -", code="bad_alias")
    return alias


def _adapter(model: str, text: str, weight: float = 1.0) -> AdapterRef:
    name, colon, tag = text.partition(":")
    tag = tag if colon else STABLE
    if name == AUTO:
        raise BadModel(f"model {model[:200]!r}: {AUTO} stands for the best adapter and has no versions; leave them out")
    if not NAME.match(name) or not (VERSION.match(tag) or ALIAS.match(tag)):
        raise _bad(model)
    return AdapterRef(name, tag, weight)


def _composition(model: str, text: str) -> tuple[AdapterRef, ...]:
    found = []
    for part in text.split(","):
        named, equals, number = part.strip().partition("=")
        try:
            weight = float(number)
        except ValueError:
            raise _bad(model) from None
        if not equals or not math.isfinite(weight) or not 0 < abs(weight) <= MAX_WEIGHT:
            raise BadModel(f"model {model!r}: weight {number!r} should be a number up to {MAX_WEIGHT:g}, not 0")
        found.append(_adapter(model, named, weight))
    if len(found) > MAX_PARTS or len({ref.name for ref in found}) < len(found):
        raise BadModel(f"model {model!r} should compose up to {MAX_PARTS} different adapters")
    return tuple(found)


def _bad(model: str) -> BadModel:
    return BadModel(f"model {model[:200]!r} should read base, base@adapter, base@adapter:tag or base@{{a=0.7,b=0.3}}")
