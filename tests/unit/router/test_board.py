from collections import Counter
from typing import ClassVar

import pytest

from catena.plan.build import ShapeConfig
from catena.plan.model import Shape
from catena.router.core.beforehand import Kinds
from catena.router.core.board import Board
from catena.router.core.candidates import House
from catena.router.core.catalogue import ModelCard, catalogue_of
from catena.router.core.choice import Taste
from catena.router.core.knowledge import Knowledge
from catena.router.core.outlook import Length
from tests.unit.router.simulation import LARGE, SMALL, cards

pytestmark = pytest.mark.unit

TASTE = Taste(objective="cost", weights={"cost": 0.3, "latency": 0.3, "quality": 0.4}, margin=0.02, caution=0.5)
HOUSE = House(shapes={Shape.CASCADE: ShapeConfig(fast=SMALL, main=LARGE)})


class Counting(Knowledge):
    """Knowledge that counts for which domains plans were looked at."""

    looked: ClassVar[Counter[str]] = Counter()

    def outlook(self, plan, domain):
        self.looked[domain] += 1
        return super().outlook(plan, domain)


def board():
    knowledge = Counting(catalogue=catalogue_of(cards()), kinds=Kinds())
    return Board(knowledge=knowledge, kinds=Kinds(), house=HOUSE, taste=TASTE, half_life=2000)


def test_what_was_asked_lately_is_ready_once_it_was_learned_anew_and_the_rest_is_not():
    before, after = board(), board()
    for _ in range(3):
        asked = before.weighed("often", "", Length(chars=100), TASTE)
    Counting.looked.clear()
    after.settle([], 0.0, before)
    assert set(Counting.looked) == {"often"}
    Counting.looked.clear()
    again = after.weighed("often", "", Length(chars=100), TASTE)
    assert not Counting.looked
    assert [(c.plan, c.prediction, c.utility) for c in again] == [(c.plan, c.prediction, c.utility) for c in asked]
    after.weighed("never", "", Length(chars=100), TASTE)
    assert set(Counting.looked) == {"never"}


def test_what_is_asked_no_more_is_not_made_ready_for_ever():
    boards = [board()]
    boards[0].weighed("once", "", Length(chars=100), TASTE)
    for _ in range(6):
        boards.append(board())
        Counting.looked.clear()
        boards[-1].settle([], 0.0, boards[-2])
    assert not Counting.looked


def test_other_prices_are_reckoned_with_at_once():
    first = board()
    dear = first.weighed("", "", Length(chars=100), TASTE)
    free = [ModelCard(name=card.name, price_input=0.0, price_output=0.0) for card in cards()]
    cheap = first.with_catalogue(catalogue_of(free)).weighed("", "", Length(chars=100), TASTE)
    assert all(c.prediction.cost_usd.mean > 0.0 for c in dear)
    assert all(c.prediction.cost_usd.mean == 0.0 for c in cheap)
