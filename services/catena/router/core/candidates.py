"""Every plan that is worth weighing for a request: shapes of the configuration with the models of the catalogue."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from catena.kit.errors import Invalid, Missing
from catena.plan.build import ShapeConfig, build, led_by, sequential
from catena.plan.model import Plan, Shape, models_of
from catena.router.core.ask import AUTO, Ask
from catena.router.core.catalogue import Catalogue

MOST_MAINS = 4
"""Models, beside the configured one, that are tried as a shape's main model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """What the configuration says of plans: shapes by name, thresholds to weigh in a cascade."""

    shapes: Mapping[Shape, ShapeConfig]
    thresholds: tuple[float, ...] = ()


def free_plans(
    house: House, catalogue: Catalogue, specialists: Iterable[str] = (), proposals: Sequence[Plan] = ()
) -> list[Plan]:
    """Plans among which `auto` chooses: each configured shape first, its variants, each model alone; none twice.

    `proposals`: further ones, by what the evidence shows.
    """
    wanted = [name for name in dict.fromkeys(specialists) if name]
    shaped = configured_plans(house)
    plans = [*shaped, *(sequential(name) for name in [*(card.name for card in catalogue.bases), *wanted])]
    mains = [*wanted, *_mains(shaped, catalogue)]
    for plan in shaped:
        if plan.shape is not Shape.SEQUENTIAL:
            plans += _with_thresholds(plan, house.thresholds)
            plans += [v for main in mains for v in _variant(plan, main, house.thresholds)]
    plans += proposals
    known = [plan for plan in plans if all(catalogue.knows(stage.model) for stage in plan.stages)]
    return list({plan.configuration_id: plan for plan in known}.values())


def configured_plans(house: House) -> list[Plan]:
    """The plan of each shape whose models the configuration names."""
    return [build(shape, config) for shape, config in house.shapes.items() if _is_whole(shape, config)]


def forced_plans(ask: Ask, house: House, catalogue: Catalogue) -> list[Plan]:
    """The plan of a forced shape, or of a named model alone; several where the caller leaves the model open.

    Raises Invalid when the configuration lacks a model that the shape needs, Missing when a model is unknown,
    Unavailable when it cannot be called.
    """
    named = ask.model if ask.model != AUTO else ""
    if named and not catalogue.knows(named):
        catalogue.check_ready(named)
        catalogue.card(named)
        raise Missing(f"unknown adapter {named!r}; list those there are with `catena adapters`", code="unknown_adapter")
    shape = ask.shape or Shape.SEQUENTIAL
    config = house.shapes.get(shape, ShapeConfig())
    if shape is Shape.SEQUENTIAL and named:
        return [build(shape, msgspec.structs.replace(config, main=named))]
    if shape is Shape.SEQUENTIAL and not config.main:
        return [sequential(card.name) for card in catalogue.bases]
    plan = _dressed(shape, config, named)
    for model in sorted(models_of([plan])):
        if not catalogue.knows(model):
            catalogue.check_ready(model)
            raise Missing(
                f"pipelines.{shape} names {model!r}, which is not in the catalogue; correct it or add the model",
                code="unknown_model",
            )
    return [plan]


def with_collection(plan: Plan, collection: str) -> Plan:
    """The plan searching the collection that the request names."""
    if not collection or plan.shape is not Shape.SEARCH:
        return plan
    return replace(plan, settings=replace(plan.settings, collection=collection))


def _dressed(shape: Shape, config: ShapeConfig, named: str) -> Plan:
    if named and shape is not Shape.CONSENSUS and not config.main:
        return build(shape, msgspec.structs.replace(config, main=named))
    if named and shape is Shape.CONSENSUS and not config.members:
        raise Invalid(
            f"consensus of {named!r}: how many? Name members in pipelines.consensus.members", code="incomplete_pipeline"
        )
    plan = build(shape, config)
    return led_by(plan, named) if named else plan


def _is_whole(shape: Shape, config: ShapeConfig) -> bool:
    try:
        build(shape, config)
    except Invalid as error:
        if error.code != "incomplete_pipeline":
            raise
        return False
    return True


def _mains(shaped: Iterable[Plan], catalogue: Catalogue) -> list[str]:
    """The models that the configuration trusts anywhere, dearest first: likely mains for every shape."""
    named = {model for model in models_of(list(shaped)) if catalogue.knows(model)}
    return sorted(named, key=lambda model: (-catalogue.price_rank(model), model))[:MOST_MAINS]


def _variant(plan: Plan, main: str, thresholds: tuple[float, ...]) -> list[Plan]:
    """The plan with another main model, unless two of its stages would then be the same model."""
    if plan.shape is Shape.CONSENSUS or main == plan.main_model:
        return []
    other = plan.with_main(main)
    models = [stage.model for stage in other.stages]
    if len(set(models)) < len(models) and len({s.model for s in plan.stages}) == len(models):
        return []
    return _with_thresholds(other, thresholds)


def _with_thresholds(plan: Plan, thresholds: tuple[float, ...]) -> list[Plan]:
    if plan.shape is not Shape.CASCADE or "confidence" not in plan.settings.checks:
        return [plan]
    levels = sorted({plan.settings.threshold, *thresholds})
    return [replace(plan, settings=replace(plan.settings, threshold=level)) for level in levels]
