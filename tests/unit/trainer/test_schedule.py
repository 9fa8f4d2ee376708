from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catena.kit.errors import Invalid
from catena.trainer.core.schedule import Pool, extent, learning_rate, steps
from catena.trainer.core.spec import Training


def flat(batches):
    return [row for batch in batches for row in batch]


def test_an_epoch_shows_each_new_row_once_with_retention_on_top():
    training = Training(epochs=1, batch_size=4, accumulation=1)
    size = extent([(60, 0.6, False), (500, 0.4, True)], training)
    assert (size.epoch_rows, size.steps) == (100, 25)


def test_the_mix_follows_the_weights_at_every_moment():
    pools = [Pool(lengths=[5] * 30, weight=3.0), Pool(lengths=[5] * 200, weight=1.0, retention=True)]
    drawn = [
        row
        for step in steps(pools, Training(max_steps=10, epochs=0, batch_size=8, accumulation=1))
        for row in flat(step)
    ]
    assert Counter(pool for pool, _ in drawn) == {0: 60, 1: 20}
    assert Counter(row for pool, row in drawn if pool == 0) == dict.fromkeys(range(30), 2)


def test_every_step_has_its_rows_in_micro_batches_of_like_length():
    pools = [Pool(lengths=list(range(64)), weight=1.0)]
    training = Training(epochs=2, batch_size=4, accumulation=2)
    made = list(steps(pools, training))
    assert [[len(batch) for batch in step] for step in made] == [[4, 4]] * 16
    assert all(max(row) - min(row) == 3 for step in made[:8] for row in ([r for _, r in batch] for batch in step))


def test_the_same_seed_gives_the_same_order_and_another_another():
    pools = [Pool(lengths=[7, 3, 9, 4] * 5, weight=1.0)]
    one, again, other = (list(steps(pools, Training(epochs=1, seed=seed))) for seed in (1, 1, 2))
    assert one == again != other


@given(st.integers(1, 400), st.floats(1e-6, 1.0))
def test_the_rate_rises_then_falls_and_stays_within_its_peak(total, peak):
    rates = [learning_rate(step, total, peak) for step in range(total)]
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in rates)
    top = rates.index(max(rates))
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_the_rate_warms_up_over_a_twentieth_and_ends_near_nothing():
    rates = [learning_rate(step, 100, 1.0) for step in range(100)]
    assert rates[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert rates[-1] == pytest.approx(1 / 95)


@pytest.mark.parametrize(
    ("sizes", "training"),
    [([(0, 1.0, False), (9, 1.0, True)], Training()), ([(9, 1.0, False)], Training(epochs=0, max_steps=0))],
)
def test_nothing_to_learn_and_no_end_are_refused(sizes, training):
    with pytest.raises(Invalid):
        extent(sizes, training)
