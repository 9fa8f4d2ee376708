import pytest

from catena.kit.errors import Missing, Unavailable
from catena.plan.build import read_shapes
from catena.plan.model import Shape
from catena.router.core.ask import Ask
from catena.router.core.candidates import House, forced_plans, free_plans
from catena.router.core.catalogue import ModelCard, alias_domain, catalogue_of, resolve_specialist

pytestmark = pytest.mark.unit

BASES = [
    ModelCard(name="large", price_input=1.0, price_output=4.0),
    ModelCard(name="small", price_input=0.1, price_output=0.4),
    ModelCard(name="gone", active=False),
    ModelCard(name="minilm", type="embedding"),
]
ADAPTERS = [ModelCard(name="large@code:1.0.0", parent="large"), ModelCard(name="small@dataeng", parent="small")]


def test_only_active_chat_bases_are_weighed_cheapest_first():
    assert [card.name for card in catalogue_of(BASES + ADAPTERS).bases] == ["small", "large"]


def test_an_adapter_costs_what_it_says_or_what_its_base_costs():
    catalogue = catalogue_of([*BASES, ModelCard(name="large@dear", parent="large", price_output=9.0)])
    assert catalogue.card("large@dear:2").price_output == 9.0
    assert catalogue.card("large@{code=0.7,style=0.3}").price_output == 4.0
    for unknown in ("nothing", "gone", "nothing@code"):
        with pytest.raises(Missing) as refused:
            catalogue.card(unknown)
        assert "known: small, large" in refused.value.message


def test_adapters_are_known_by_name_where_any_are_listed():
    listed, bare = catalogue_of(BASES + ADAPTERS), catalogue_of(BASES)
    assert listed.knows("large@code") and listed.knows("large@code:canary") and listed.knows("small@dataeng")
    assert not listed.knows("large@cod") and not listed.knows("large@dataeng")
    assert bare.knows("large@anything") and not bare.knows("gone@anything")
    assert listed.knows("large@{code=1.0}")


def test_a_model_that_cannot_be_called_is_no_candidate_and_says_why_when_named():
    broken = ModelCard(name="broken", active=False, problem="no folder at nope; correct it")
    catalogue = catalogue_of([*BASES, broken, ModelCard(name="large@code", parent="large")])
    assert [card.name for card in catalogue.bases] == ["small", "large"]
    house = House(shapes=read_shapes({"cascade": {"fast": "broken", "main": "large"}}))
    plans = free_plans(house, catalogue, ["broken@code"])
    assert {stage.model for plan in plans for stage in plan.stages} == {"small", "large"}
    for named, shape in (("broken", None), ("broken@code", None), ("auto", Shape.CASCADE)):
        with pytest.raises(Unavailable, match="no folder at nope; correct it") as refused:
            forced_plans(Ask(text="x", chars=1, model=named, shape=shape), house, catalogue)
        assert refused.value.code == "model_unready"


def test_prices_rank_models_and_their_adapters():
    catalogue = catalogue_of(BASES)
    assert [catalogue.price_rank(name) for name in ("small", "large@code", "who")] == [0.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("name", "domain"),
    [("qlp-dataeng-alora", "dataeng"), ("acme-front-end-alora", "front-end"), ("large@code", ""), ("alora", "")],
)
def test_the_old_pattern_names_a_domain(name, domain):
    assert alias_domain(name) == domain


def test_a_specialist_by_the_old_pattern_is_the_adapter_of_its_domain():
    catalogue = catalogue_of(BASES + ADAPTERS)
    assert resolve_specialist("qlp-dataeng-alora", "dataeng", catalogue) == "small@dataeng"
    assert resolve_specialist("qlp-devops-alora", "devops", catalogue) == ""
    assert resolve_specialist("large@code", "code", catalogue) == "large@code"
    assert resolve_specialist("large@lost", "code", catalogue) == ""
