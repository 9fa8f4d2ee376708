import random

import pytest

from catena.adapters.drivers.engine.lookup import Lookup
from catena.adapters.drivers.engine.sampling import accept, certain

pytestmark = pytest.mark.unit


def lookup(tokens: list[int], most: int = 4, limit: int = 100) -> Lookup:
    return Lookup(tokens=tokens, most=most, limit=limit)


def test_what_followed_the_latest_like_place_is_proposed() -> None:
    assert lookup([1, 2, 3, 9, 8, 1, 2, 3, 7, 6, 5, 1, 2, 3]).proposal == [7, 6, 5, 1]


def test_a_longer_likeness_comes_before_a_later_one() -> None:
    assert lookup([1, 2, 3, 9, 5, 2, 3, 8, 1, 2, 3], most=1).proposal == [9]


def test_nothing_alike_proposes_nothing() -> None:
    assert list(lookup([1, 2, 3, 4, 5]).proposal) == []
    assert list(lookup([1]).proposal) == []


def test_growing_text_is_followed() -> None:
    tokens = [1, 2, 3, 4]
    found = lookup(tokens)
    assert list(found.proposal) == []
    tokens += [1, 2]
    assert list(found.proposal) == [3, 4, 1, 2]


def test_no_more_is_proposed_than_there_is_room_for_and_nothing_while_idle() -> None:
    found = lookup([1, 2, 3, 4, 1, 2], limit=9)
    assert list(found.proposal) == [3, 4]
    found.idle = True
    assert list(found.proposal) == []


def test_copied_tokens_are_accepted_as_often_as_the_model_would_say_them() -> None:
    torch = pytest.importorskip("torch")
    target = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]])
    rng, said = random.Random(1), [0, 0, 0]
    for _ in range(4000):
        stood, token = accept([1], certain([1], target), target, rng)
        said[1 if stood else token] += 1
    assert [count / 4000 for count in said] == pytest.approx([0.6, 0.3, 0.1], abs=0.03)
