"""What the executor is made of, put together in `app`, and what it was told in its configuration."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from catena.executor.core.attempts import Limits
from catena.executor.core.catalogue import Model, find, may_draft
from catena.executor.core.chat import ChatRequest
from catena.executor.core.estimates import Paces
from catena.executor.core.ports import (
    Cache,
    Catalogue,
    Embedding,
    Features,
    Memory,
    Pipelines,
    Predictor,
    Provider,
    Records,
    SemanticCache,
    Templates,
    Verifier,
)
from catena.executor.core.routes import Routes
from catena.executor.core.strategies import STRATEGIES, Facts, StrategyMaker
from catena.executor.core.turns import Sleep
from catena.executor.core.verifiers import VERIFIERS
from catena.kit.clock import World
from catena.kit.errors import Missing
from catena.plan.build import ShapeConfig, build, led_by, sequential
from catena.plan.model import Plan, Shape, parse_shape

PROMPT_LOGPROBS = "prompt_logprobs"
"""Capability of models whose server scores prompts and continues answers as vLLM's does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Knobs. `window_s`: deltas closer than this are joined. `verifiers`: who judges every answer, by name."""

    limits: Limits = field(default_factory=Limits)
    window_s: float = 0.025
    keeps_texts: Callable[[str], bool] = lambda tenant: False
    mask_texts: bool = True
    verifiers: tuple[str, ...] = tuple(VERIFIERS)
    embedding_model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The ports, the registries that plug-ins extend, and the world."""

    catalogue: Catalogue
    providers: Mapping[str, Provider]
    embeddings: Mapping[str, Embedding]
    predictors: Mapping[str, Predictor] = field(default_factory=dict)
    memory: Memory
    features: Features
    pipelines: Pipelines
    records: Records
    templates: Templates
    cache: Cache
    world: World
    semantic: SemanticCache | None = None
    settings: Settings = Settings()
    shapes: Mapping[Shape, ShapeConfig] = field(default_factory=dict)
    strategies: Mapping[Shape, StrategyMaker] = field(default_factory=lambda: STRATEGIES)
    verifiers: Mapping[str, Verifier] = field(default_factory=lambda: VERIFIERS)
    paces: Paces = field(default_factory=Paces)
    routes: Routes = field(default_factory=Routes)
    sleep: Sleep = asyncio.sleep

    @property
    def models(self) -> Mapping[str, Model]:
        """The catalogue as it stands."""
        return self.catalogue.models


def facts(parts: Parts, collection: str = "") -> Facts:
    """What strategies may ask of the catalogue."""

    def logprobs(name: str) -> bool:
        model = find(parts.models, name)
        return model.provider != "local" and "logprobs" in model.capabilities

    def verifies(name: str) -> bool:
        return PROMPT_LOGPROBS in find(parts.models, name).capabilities

    def able(name: str, request: ChatRequest) -> bool:
        capabilities = find(parts.models, name).capabilities
        return not capabilities or request.needs <= set(capabilities)

    return Facts(
        may_draft=lambda draft, target: may_draft(parts.models, draft, target),
        logprobs=logprobs,
        verifies=verifies,
        able=able,
        collection=collection,
    )


def plan_of(parts: Parts, shape_name: str, model: str) -> Plan:
    """The plan of one model, or of a configured shape with `model`, if named, as the main one.

    Raises Missing (`unconfigured_shape`).
    """
    shape = parse_shape(shape_name)
    if shape is None:
        return sequential(model)
    config = parts.shapes.get(shape)
    if config is None:
        raise Missing(f"no models are configured for {shape}; set pipelines.{shape}", code="unconfigured_shape")
    plan = build(shape, config)
    return led_by(plan, model) if model else plan
