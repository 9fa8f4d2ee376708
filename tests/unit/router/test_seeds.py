from dataclasses import replace

import pytest

from catena.kit.errors import Unavailable
from catena.router.core.domains import Domain, classify
from catena.router.core.seeds import ADAPTERS, PROCEDURES, Hint, seeds
from demo.questions import questions
from tests.unit.router.test_domains import SKILLS, domain, head_of, words
from tests.unit.router.world import EXAMPLES, Bench

pytestmark = pytest.mark.unit

REFUND = Hint(origin=PROCEDURES, name="refunds", texts=("customer wants the money back", "refund an invoice"))


def test_hints_of_one_kind_make_one_domain_with_the_only_specialist():
    code = Hint(origin=ADAPTERS, name="Code Review", texts=("reviewer",), specialist="m@reviewer")
    (one,) = seeds([code, replace(code, texts=("other",), specialist="")], "t")
    assert (one.name, one.origin, one.specialist) == ("code-review", ADAPTERS, "m@reviewer")
    assert one.examples == ("Code Review", "reviewer", "other")
    (both,) = seeds([code, replace(code, specialist="m@rival")], "t")
    assert both.specialist == ""
    assert seeds([Hint(origin=PROCEDURES, name="???")], "t") == []


async def test_what_other_rooms_tell_of_becomes_a_domain_and_follows_them():
    bench = await Bench().open()
    await bench.atlas.seed("t", [REFUND])
    assert (await bench.recommend("refund an invoice please")).plan.domain == "refunds"
    told = replace(REFUND, texts=(*REFUND.texts, "chargeback"))
    await bench.atlas.seed("t", [told])
    (found,) = [d for d in bench.atlas.list("t") if d.name == "refunds"]
    assert found.examples[-1] == "chargeback"
    revision = (await bench.journal.changes(0)).revision
    await bench.atlas.seed("t", [told])
    assert (await bench.journal.changes(0)).revision == revision


async def test_what_somebody_put_merged_or_removed_is_not_taken_over_again():
    bench = await Bench().open()
    await bench.atlas.put(Domain(name="refunds", tenant="t", examples=("mine",)))
    await bench.atlas.seed("t", [REFUND])
    assert [d.examples for d in bench.atlas.list("t") if d.name == "refunds"] == [("mine",)]
    await bench.atlas.merge("t", ["refunds", "upper"], "mixed")
    await bench.atlas.seed("t", [REFUND])
    assert "refunds" not in [d.name for d in bench.atlas.list("t")]
    await bench.atlas.seed("t", [replace(REFUND, name="returns")])
    await bench.atlas.delete("t", "returns")
    for again in (bench, Bench(journal=bench.journal)):
        await again.atlas.seed("t", [replace(REFUND, name="returns")])
        assert "returns" not in [d.name for d in again.atlas.list("t")]


async def test_what_is_shared_is_not_taken_over_by_each_tenant():
    bench = await Bench().open()
    await bench.atlas.seed("shared", [REFUND])
    await bench.atlas.seed("t", [REFUND])
    assert [d.tenant for d in bench.atlas.list("t") if d.name == "refunds"] == ["shared"]


def test_a_domain_of_one_example_leaves_the_others_as_sure_as_they_were():
    known = [domain(s, [q.text for q in questions(6, 1, skills=[s])]) for s in SKILLS]
    rows = words([q.text for q in questions(60, 9)])
    plain, with_one = head_of(known), head_of([*known, domain("billing", ["refund an invoice"])])
    before = [classify(plain, row)[0].probability for row in rows]
    after = [classify(with_one, row)[0].probability for row in rows]
    assert min(b - a for b, a in zip(after, before, strict=True)) > -0.1
    alone = head_of([domain("a", ["code review"]), domain("b", ["refund an invoice"])])
    assert classify(alone, words(["code review"])[0])[0].domain == "a"


async def test_while_the_embedding_model_is_away_requests_go_without_a_domain():
    bench = await Bench().open()

    async def away(texts):
        raise Unavailable("the embedding model is away")

    bench.router._ports = replace(bench.router._ports, embed=away)
    assert (await bench.recommend(EXAMPLES["upper"][0])).plan.domain == ""
    assert (await bench.recommend("anything", task="upper")).plan.domain == "upper"
