import random
from collections import Counter
from typing import Any

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from catena.adapters.core.work import Sampling
from catena.adapters.drivers.engine.sampling import Draw, accept, agree, draw_of, penalise, pick, probabilities


def draw(temperature: float = 1.0, top_p: float = 1.0, **more: object) -> Draw:
    return Draw(temperature=temperature, top_p=top_p, rng=random.Random(0), **more)  # type: ignore[arg-type]


def test_temperature_and_nucleus_give_the_textbook_distribution() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]] * 3)

    got = probabilities(logits, [draw(2.0), draw(1.0, 0.8), draw(0.0)])

    assert torch.allclose(got[0], torch.softmax(logits[0] / 2, 0))
    kept = torch.softmax(logits[0], 0)[:2]
    assert torch.allclose(got[1], torch.cat((kept / kept.sum(), torch.zeros(2))))
    assert got[2].tolist() == [1.0, 0.0, 0.0, 0.0]


def test_the_likeliest_token_survives_the_smallest_nucleus() -> None:
    got = probabilities(torch.tensor([[0.0, 5.0, 1.0]]), [draw(1.0, 1e-9)])

    assert got[0].tolist() == [0.0, 1.0, 0.0]


def test_a_uniform_number_picks_by_cumulated_share() -> None:
    probs = torch.tensor([[0.5, 0.0, 0.5]] * 4)

    assert pick(probs, [0.0, 0.499, 0.5, 0.999999]) == [0, 0, 2, 2]


def test_penalties_follow_the_counts() -> None:
    logits = torch.zeros(2, 4)
    draws = [draw(presence=1.0, frequency=0.5, counts={1: 2, 3: 1}), draw()]

    got = penalise(logits, draws)

    assert got.tolist() == [[0.0, -2.0, 0.0, -1.5], [0.0] * 4]
    assert logits.abs().sum() == 0


def chain(settings: dict[str, float]) -> list[Any]:
    """Transformers' own processors for these settings, in the order in which its `generate` applies them."""
    made = {
        "repetition": RepetitionPenaltyLogitsProcessor,
        "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
        "min_p": MinPLogitsWarper,
    }
    return [kind(settings[name]) for name, kind in made.items() if name in settings]


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 1},
        {"top_k": 7},
        {"top_k": 5000},
        {"top_p": 0.3},
        {"top_p": 0.97},
        {"min_p": 0.02},
        {"min_p": 1.0},
        {"repetition": 1.7},
        {"repetition": 0.6},
        {"temperature": 0.6, "top_k": 20, "top_p": 0.8, "min_p": 0.1, "repetition": 1.3},
        {"temperature": 1.9, "top_k": 50, "top_p": 0.9},
    ],
    ids=str,
)
def test_draws_are_distributed_as_transformers_processors_say(settings: dict[str, float]) -> None:
    torch.manual_seed(4)
    logits, seen = 4 * torch.randn(6, 300), torch.randint(0, 300, (6, 40))
    wanted = logits
    for processor in chain(settings):
        wanted = processor(seen, wanted)
    rows = [draw(**settings, prompt=ids[:25], counts=Counter(ids[25:])) for ids in seen.tolist()]

    got = probabilities(penalise(logits, rows), rows)

    assert torch.equal(got > 0, wanted > -torch.inf)
    assert torch.allclose(got, torch.softmax(wanted, -1), atol=1e-6)


def test_rows_keep_their_own_settings_in_one_batch() -> None:
    torch.manual_seed(5)
    logits = 3 * torch.randn(5, 100)
    rows = [draw(), draw(top_k=3), draw(top_k=40, min_p=0.2), draw(0.0, top_k=2), draw(0.5, 0.7)]

    together = probabilities(logits, rows)

    for row, alone in enumerate(rows):
        assert torch.allclose(together[row], probabilities(logits[row : row + 1], [alone])[0])
    assert (together[1] > 0).sum() == 3


def test_a_prompt_alone_is_penalised_for_repetition_and_for_nothing_else() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0]])

    got = penalise(logits, [draw(repetition=4.0, presence=1.0, prompt=[0, 1])])

    assert got.tolist() == [[0.5, -8.0, 1.0]]


def test_biases_are_added_before_penalties() -> None:
    logits = torch.tensor([[1.0, 1.0, -1.0, 0.0]])

    got = penalise(logits, [draw(bias=((0, 3.0), (2, -100.0)), repetition=2.0, presence=0.5, counts={0: 1})])

    assert got.tolist() == [[1.5, 1.0, -101.0, 0.0]]


def test_streams_of_one_seed_differ_and_repeat() -> None:
    sampling = Sampling(seed=5)

    first, again, other = (draw_of(sampling, 1.0, stream).rng.random() for stream in ("0", "0", "1"))

    assert first == again != other
    assert draw_of(sampling, 0.0, "0").greedy
    assert not draw_of(Sampling(temperature=0.7), 0.0, "0").greedy


@pytest.mark.parametrize("draft", [[0.7, 0.1, 0.1, 0.1], [0.0, 0.0, 0.5, 0.5], [0.4, 0.3, 0.2, 0.1]])
def test_accepted_tokens_are_distributed_as_the_targets_own(draft: list[float]) -> None:
    target = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]])
    proposal = torch.tensor(draft)
    rng, count = random.Random(1), 8_000
    first, second = torch.zeros(4), torch.zeros(4)

    for _ in range(count):
        (drafted,) = pick(proposal.unsqueeze(0), [rng.random()])
        stood, token = accept([drafted], [proposal], target, rng)
        first[drafted if stood else token] += 1
        if stood:
            second[token] += 1

    # Five standard errors of a share of 8,000 draws.
    assert (first / count - target[0]).abs().max() < 5 * (0.25 / count) ** 0.5
    assert (second / second.sum() - target[1]).abs().max() < 5 * (0.25 / float(second.sum())) ** 0.5


def test_a_draft_that_is_the_target_is_always_accepted() -> None:
    target = torch.tensor([[0.25] * 4] * 3)
    rng = random.Random(3)

    assert all(accept([1, 2], [target[0], target[1]], target, rng)[0] == 2 for _ in range(200))


@pytest.mark.parametrize(
    ("proposal", "best", "wanted"), [([1, 2], [1, 2, 3], (2, 3)), ([1, 9], [1, 2, 3], (1, 2)), ([9], [1, 2], (0, 1))]
)
def test_greedy_agreement_is_the_common_start(proposal: list[int], best: list[int], wanted: tuple[int, int]) -> None:
    assert agree(proposal, best) == wanted
