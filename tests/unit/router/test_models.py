from catena.kit.config import ModelConfig
from catena.router.core.catalogue import Catalogue
from catena.router.drivers.models import configured_models


def test_a_model_that_does_not_generate_is_never_chosen_for_a_chat() -> None:
    told = [ModelConfig(name="small"), ModelConfig(name="mood", type="classification")]
    cards = {card.name: card for card in configured_models(told)}
    assert [card.name for card in Catalogue(cards).bases] == ["small"]
