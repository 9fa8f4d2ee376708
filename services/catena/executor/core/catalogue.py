"""The models that may be called, what they cost, and finding one by name."""

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from catena.executor.core.chat import ChatRequest, Usage
from catena.kit.config import ModelType
from catena.kit.errors import Invalid, Missing, Unavailable

LOCAL = "local"
MILLION = 1_000_000.0
KEYED = {"openai": "OpenAI", "anthropic": "Anthropic", "gemini": "Gemini", "huggingface": "Hugging Face"}
"""Providers whose own service wants a key."""
Kind = ModelType
Status = Literal["active", "disabled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """An entry of the catalogue. Prices are USD per million tokens; `context_tokens` 0: unknown.

    `price_cached_input` and `price_cache_write` None: as other input; `price_reasoning` None: as other output.
    `fallbacks` are asked instead, in this order, while this model fails. The last three figures are what its provider
    allows us, 0: no limit. `upstream_name` empty: the same at the provider. `parent` names the base of an adapter.
    `problem`: why it cannot be called now; a call that names it is tried all the same, and told by its provider.
    """

    name: str
    provider: str = LOCAL
    type: Kind = "chat"
    price_input: float = 0.0
    price_output: float = 0.0
    context_tokens: int = 0
    capabilities: tuple[str, ...] = ()
    base_url: str = ""
    upstream_name: str = ""
    status: Status = "active"
    api_key_env: str = ""
    draft_for: tuple[str, ...] = ()
    calls: int = 0
    parent: str = ""
    problem: str = ""
    price_cached_input: float | None = None
    price_cache_write: float | None = None
    price_reasoning: float | None = None
    version: str = ""
    fallbacks: tuple[str, ...] = ()
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0
    at_once: int = 0

    @property
    def upstream(self) -> str:
        """The name to use at the provider."""
        return self.upstream_name or self.name


def find(models: Mapping[str, Model], name: str) -> Model:
    """The entry that `name` means; an adapter of a local base takes all but its name from the base.

    Raises Missing (`unknown_model`) naming close matches, Unavailable (`model_disabled`).
    """
    model = models.get(name)
    if model is None:
        base, at, _ = name.partition("@")
        parent = models.get(base) if at else None
        if parent is None or parent.provider != LOCAL:
            raise Missing(f"unknown model {name!r}; {_hint(models, name)}", code="unknown_model")
        model = adapter_of(parent, name)
    if model.status == "disabled":
        raise Unavailable(f"model {name!r} is disabled; enable it or name another", code="model_disabled")
    return model


def adapter_of(base: Model, name: str) -> Model:
    """The entry of the adapter `name` of a local base; what is the base's own is not passed on."""
    return replace(base, name=name, parent=base.name, upstream_name="", calls=0, version="", fallbacks=(), draft_for=())


def check_fallbacks(model: Model, known: Collection[str]) -> None:
    """Raise Invalid (`bad_model`) for a fallback that is the model itself or is not known."""
    for name in model.fallbacks:
        if name == model.name or name not in known:
            why = "is that model itself" if name == model.name else "is in no catalogue; add it first"
            raise Invalid(f"fallback {name!r} of {model.name!r} {why}", code="bad_model")


def needs_of(request: ChatRequest) -> frozenset[str]:
    """The capabilities without which a request makes no sense."""
    seen = any(turn.images for turn in request.messages)
    return frozenset(name for name, needed in (("tools", bool(request.tools)), ("vision", seen)) if needed)


def instead_of(models: Mapping[str, Model], name: str, needs: Collection[str] = ()) -> list[str]:
    """The fallbacks of `name` that may be asked: known, active, chatting, each once, with all that is needed.

    A model that tells no capabilities is taken to have them.
    """
    model = models.get(name)
    found = [models.get(other) for other in dict.fromkeys(model.fallbacks)] if model else []
    return [one.name for one in found if one and one.name != name and _serves(one, needs)]


def spare_for(models: Mapping[str, Model], name: str, needs: Collection[str], besides: Collection[str]) -> list[str]:
    """The one that answers for `name` where any may: the next dearer, as dearer is stronger, else the dearest.

    Local ones come first among equals: what took an outside model away may have taken others. `besides` are left out.
    """
    first = models.get(base_of(name))
    if first is None:
        return []
    left = [one for one in models.values() if one is not first and one.name not in besides and _serves(one, needs)]
    dearer = [one for one in left if one.price_output >= first.price_output]
    near = [(abs(one.price_output - first.price_output), one.provider != LOCAL, one.name) for one in dearer or left]
    return [min(near)[2]] if near else []


def _serves(model: Model, needs: Collection[str]) -> bool:
    able = not model.capabilities or set(needs) <= set(model.capabilities)
    return model.type == "chat" and model.status == "active" and able


def problem_of(
    model: Model, *, bases: Mapping[str, str], providers: Collection[str], secret: Callable[[str], str]
) -> str:
    """Why `model` cannot be called, with the cure; empty: nothing is known against it.

    `bases`: the problem, or none, of each base that the adapters room has; empty where it has not told.
    """
    if model.provider not in providers:
        return f"no provider {model.provider!r} for {model.name!r}; use one of {', '.join(sorted(providers))}"
    if model.provider == LOCAL:
        # The house's own embedding model is none of that room's bases.
        unknown = f"no base {model.name!r} in the adapters room; name it under `models`"
        return bases.get(model.name, "" if model.type == "embedding" else unknown) if bases else ""
    if model.api_key_env and not secret(model.api_key_env):
        return f"{model.name} needs a key and {model.api_key_env} is not set; set it and start again"
    if model.provider in KEYED and not (model.base_url or model.api_key_env):
        service = KEYED[model.provider]
        return f"{model.name} names no key for {service}; set its api_key_env, or the base_url of another server"
    if model.provider == "tgi" and not model.base_url:
        return f"{model.name} names no server; set its base_url to that of its TGI"
    return ""


def _hint(models: Mapping[str, Model], name: str) -> str:
    names = sorted(models)
    if not names:
        return "the catalogue is empty: add models to the configuration"
    close = difflib.get_close_matches(name.partition("@")[0], names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names[:10])}"


def base_of(name: str) -> str:
    """The base of `base@adapter`; the name itself where there is no adapter."""
    return name.partition("@")[0]


def may_draft(models: Mapping[str, Model], draft: str, target: str) -> bool:
    """Whether `draft` can speculate for `target` without loss: both local, the same tokenizer by declaration."""
    first, second = models.get(base_of(draft)), models.get(base_of(target))
    if first is None or second is None or first.provider != LOCAL or second.provider != LOCAL:
        return False
    return second.name in first.draft_for


def cost_usd(model: Model, usage: Usage) -> float:
    """What `usage` costs: input from and to a cache, and reasoning, at their own prices, where they have any."""
    cached = model.price_input if model.price_cached_input is None else model.price_cached_input
    keeping = model.price_input if model.price_cache_write is None else model.price_cache_write
    thinking = model.price_output if model.price_reasoning is None else model.price_reasoning
    kept, said = usage.cache_write_tokens, usage.output_tokens - usage.reasoning_tokens
    fresh = usage.input_tokens - usage.cached_input_tokens - kept
    read = fresh * model.price_input + usage.cached_input_tokens * cached + kept * keeping
    written = said * model.price_output + usage.reasoning_tokens * thinking
    return (read + written) / MILLION


def only(models: Sequence[Model], kind: Kind) -> list[Model]:
    """The active models of one kind."""
    return [model for model in models if model.type == kind and model.status == "active"]
