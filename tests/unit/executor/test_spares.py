"""Who answers for a model that is away where the caller named none."""

from typing import Any

import pytest

from catena.executor.core.catalogue import Model, spare_for
from catena.kit.errors import Unavailable
from catena.plan.model import Role, Shape
from tests.unit.executor.fakes import bed, plan, stage


def test_who_named_no_model_is_served_by_the_next_dearer_one_that_can() -> None:
    def priced(name: str, price: float, **more: Any) -> Model:
        return Model(name=name, price_output=price, **more)

    models = {
        one.name: one
        for one in (
            priced("vectors", 2.0, type="embedding"),
            priced("off", 2.0, status="disabled"),
            priced("cheap", 1.0, provider="openai"),
            priced("far", 3.0, provider="openai"),
            priced("near", 3.0, capabilities=("json",)),
            priced("dear", 9.0),
        )
    }
    assert spare_for(models, "cheap", (), ()) == ["near"]
    assert spare_for(models, "cheap", {"tools"}, ()) == ["far"]
    assert spare_for(models, "near@adapter", (), ()) == ["far"]
    assert spare_for(models, "dear", (), ()) == ["near"], "nothing is dearer: the dearest of the others"
    assert spare_for(models, "dear", (), ("near", "far", "cheap")) == []
    assert spare_for(models, "gone", (), ()) == []


@pytest.mark.parametrize("stream", [False, True])
async def test_where_the_house_chose_the_model_another_answers_once_for_one_that_is_away(stream: bool) -> None:
    gone = Unavailable("away", code="provider_gone")
    for any_model in (True, False):
        table = bed(outside=[gone], small=[gone], third="stood in")
        asked = table.run(plan(Shape.SEQUENTIAL, stage(Role.MAIN, "outside")), stream=stream, any_model=any_model)
        if not any_model:
            with pytest.raises(Unavailable):
                await asked
            assert {one.model.name for one in table.provider.asked} == {"outside"}
            continue
        finished, _ = await asked
        assert (finished.model, finished.choices[0].text, finished.lossy) == ("third", "stood in", False)
        assert [(one.model, one.outcome) for one in finished.stages] == [
            ("outside", "failed"),
            ("outside", "failed"),
            ("third", "accepted"),
        ]
        assert finished.stages[-1].reason == "instead of outside (provider_gone)"
    table = bed(outside=[gone], third=[gone], small="never asked")
    with pytest.raises(Unavailable):
        await table.run(plan(Shape.SEQUENTIAL, stage(Role.MAIN, "outside")), any_model=True)


async def test_a_stage_that_can_be_done_without_gets_no_model_besides_its_own() -> None:
    table = bed(outside=[Unavailable("away", code="provider_gone")], large="climbed")
    climbing = plan(Shape.CASCADE, stage(Role.FAST, "outside"), stage(Role.MAIN, "large"))
    finished, _ = await table.run(climbing, any_model=True)
    assert finished.model == "large"
    assert {one.model.name for one in table.provider.asked} == {"outside", "large"}
