import math

import pytest

from catena.gateway.core.choice import cap, choose, objective
from catena.kit.errors import Invalid
from catena.plan.model import Shape


def test_a_named_model_needs_no_router() -> None:
    assert not choose("demo-small", "").needs_router


def test_auto_and_forced_shapes_need_the_router() -> None:
    assert choose("auto", "").needs_router
    forced = choose("demo-large", "parallel-consensus")
    assert forced.needs_router
    assert forced.shape is Shape.CONSENSUS
    assert forced.model == "demo-large"


def test_names_that_stand_for_a_task_need_the_router() -> None:
    assert choose("demo-large@auto", "").needs_router
    assert choose("qlp-dataeng-alora", "").needs_router


def test_a_pipeline_is_run_by_name() -> None:
    choice = choose("pipeline:moderation", "cascade")
    assert choice.pipeline == "moderation"
    assert not choice.needs_router


@pytest.mark.parametrize(
    ("model", "kind", "code"),
    [
        ("", "", "missing_model"),
        ("m", "tree", "unknown_pipeline_type"),
        ("pipeline:p", "tree", "unknown_pipeline_type"),
    ],
)
def test_nonsense_is_refused_with_its_code(model: str, kind: str, code: str) -> None:
    with pytest.raises(Invalid) as told:
        choose(model, kind)
    assert told.value.code == code


@pytest.mark.parametrize("value", [-1.0, 0.0, math.nan, math.inf])
def test_a_cap_is_a_finite_number_above_zero(value: float) -> None:
    with pytest.raises(Invalid):
        cap("max cost", value)


def test_no_cap_is_zero() -> None:
    assert cap("max cost", None) == 0.0
    assert cap("max cost", 0.5) == 0.5


def test_an_unknown_objective_is_refused() -> None:
    assert objective("cost") == "cost"
    with pytest.raises(Invalid):
        objective("speed")
