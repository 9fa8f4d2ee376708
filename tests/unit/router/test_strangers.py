from dataclasses import replace

import numpy as np
import pytest

from catena.plan.build import sequential
from catena.router.core.domains import DomainScore
from catena.router.core.strangers import EVEN, LATEST, estimate, reckoned, strangeness
from tests.unit.router.simulation import LARGE
from tests.unit.router.world import EXAMPLES, Bench

pytestmark = pytest.mark.unit

KNOWN, STRANGE = ["upper: walrus", "reverse: ox", "sort: 6 2 8"], ["write a poem about the sea", "bonjour", "x", "42"]

MANY = 1000


def calibrated(rng, count, share):
    """Strangenesses of a classifier that is right by its own word where every other request is a stranger."""
    strange = rng.random(count) < share
    told = np.where(strange, rng.normal(1.5, 1.5, count), rng.normal(-1.5, 1.5, count))
    # Of two normal densities that far apart the log-odds are linear.
    return 1.0 / (1.0 + np.exp(-2.0 * 1.5 / 1.5**2 * told))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_the_share_of_strangers_is_found_without_labels(share):
    rng = np.random.default_rng(1)
    found = [estimate(calibrated(rng, LATEST, share), MANY) for _ in range(20)]
    assert np.mean(found) == pytest.approx(share, abs=0.06)
    assert max(found) - min(found) < 0.2


def test_until_requests_tell_every_other_one_is_reckoned_a_stranger():
    assert estimate([], MANY) == EVEN
    assert 0.3 < estimate([0.01] * 10, MANY) < EVEN


def test_of_few_domains_even_many_requests_tell_little():
    shares = [estimate([0.05] * LATEST, domains) for domains in (0, 1, 2, 4, 16, MANY)]
    assert shares == sorted(shares, reverse=True)
    assert shares[1] > 0.25 > 0.05 > shares[-1]


@pytest.mark.parametrize("strange", [[1.0] * LATEST, [1e-9] * LATEST])
def test_no_share_is_ever_certain(strange):
    assert 0.0 < estimate(strange, MANY) < 1.0


def test_probabilities_move_by_bayes_rule_and_keep_their_order():
    scores = [DomainScore("a", 0.6, 0.5), DomainScore("b", 0.1, 0.2)]
    assert strangeness(scores) == pytest.approx(0.3)
    assert reckoned(scores, EVEN) == scores
    few = reckoned(scores, 0.1)
    # Odds of none of them: .3 to .7, times .1 to .9.
    assert strangeness(few) == pytest.approx(0.3 * 0.1 / (0.3 * 0.1 + 0.7 * 0.9))
    assert few[0].probability / few[1].probability == pytest.approx(6.0)
    assert [one.similarity for one in few] == [0.5, 0.2]


async def asked(bench, texts, count):
    """Recommendations that ran, each told back as the bus would."""
    for number in range(count):
        decision = await bench.recommend(texts[number % len(texts)])
        one, _ = bench.simulated.run(decision.plan, "upper", 0.0)
        await bench.observe(replace(one, plan=decision.plan, routed=True))
    await bench.router.settle()


async def test_where_hardly_any_request_is_strange_a_likely_domain_is_believed_and_where_many_are_it_is_not():
    home, abroad = await Bench().open(), await Bench().open()
    vague = "upper moss"
    before = (await home.explain(vague)).found
    assert home.router.strangers("t") == EVEN
    await asked(home, KNOWN, 120)
    await asked(abroad, STRANGE, 120)
    assert home.router.strangers("t") < 0.25 < 0.75 < abroad.router.strangers("t")
    among, apart = (await home.explain(vague)).found, (await abroad.explain(vague)).found
    assert apart.confidence < before.confidence < among.confidence
    assert among.strangeness == before.strangeness == apart.strangeness


async def test_what_was_strange_to_other_domains_is_forgotten():
    bench = await Bench().open()
    await asked(bench, STRANGE, 60)
    assert bench.router.strangers("t") > 0.6
    bench.world.clock.advance(10.0)
    poems = replace(bench.atlas.list("t")[0], name="poems", tenant="t", examples=("a poem about a tree", "a poem, sad"))
    await bench.atlas.put(poems)
    assert bench.router.strangers("t") == EVEN


async def test_a_request_that_names_its_task_tells_nothing_of_strangers():
    bench = await Bench().open(EXAMPLES)
    decision = await bench.recommend("write a poem", task="upper")
    assert decision.plan.strangeness == 0.0
    one, _ = bench.simulated.run(sequential(LARGE), "upper", 0.0)
    for _ in range(30):
        await bench.observe(replace(one, execution_id=bench.world.new_id(), routed=True))
    await bench.router.settle()
    assert bench.router.strangers("t") == EVEN
