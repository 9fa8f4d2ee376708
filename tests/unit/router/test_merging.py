from dataclasses import replace

import pytest

from catena.kit.errors import Denied, Invalid, Missing
from catena.plan.build import sequential
from catena.router.core.domains import Domain
from catena.router.core.experiments import Arm, Experiment
from catena.router.core.ports import Verdict
from tests.unit.router.simulation import LARGE, SMALL
from tests.unit.router.world import EXAMPLES, Bench

pytestmark = pytest.mark.unit


async def test_what_was_learned_of_merged_domains_goes_with_them_and_their_names_go_on_meaning_it():
    bench = await Bench().open()
    for number in range(60):
        model, domain = (LARGE if number % 2 else SMALL), ("upper" if number % 4 < 2 else "reverse")
        one, _ = bench.simulated.run(sequential(model), domain, 0.0)
        verdict = Verdict(execution_id=one.execution_id, score=float(model == LARGE), source="tests")
        await bench.observe(one, verdict)
    await bench.router.settle()
    before = {t.domain: t.executions for t in (await bench.router.report("t")).configurations if "large" in t.plan}
    assert before == {"upper": 15, "reverse": 15}

    merged = await bench.atlas.merge("t", ["upper", "reverse"], "case")
    assert (merged.tenant, merged.aliases) == ("t", ("upper", "reverse"))
    known = bench.router.knowledge("t")
    assert known.runs_judged(sequential(LARGE), "case") > 25
    assert known.predict(sequential(LARGE), "case").quality.mean > 0.8
    assert known.predict(sequential(SMALL), "case").quality.mean < 0.3
    rows = (await bench.router.report("t")).configurations
    assert {(t.domain, t.executions, t.judged) for t in rows} == {("case", 30, 30)}
    for text in ("upper: walrus", "reverse: walrus"):
        assert (await bench.recommend(text)).plan.domain == "case"
    for task in ("upper", "reverse", "case"):
        assert (await bench.recommend("anything", task=task)).plan.domain == "case"

    other = Bench(journal=bench.journal)
    await other.router.settle()
    mine, theirs = await bench.explain("upper: walrus"), await other.explain("upper: walrus")
    assert [(c.plan, c.utility) for c in mine.ranked] == [(c.plan, c.utility) for c in theirs.ranked]
    late, _ = bench.simulated.run(sequential(LARGE), "upper", 0.0)
    await bench.observe(late, Verdict(execution_id=late.execution_id, score=1.0, source="tests"))
    await bench.router.settle()
    assert {t.domain for t in (await bench.router.report("t")).configurations} == {"case"}


async def test_a_tenant_merges_for_itself_alone():
    bench = await Bench().open()
    await bench.atlas.merge("t", ["upper", "reverse"], "upper")
    assert [d.name for d in bench.atlas.list("t") if d.name in ("upper", "reverse")] == ["upper"]
    assert len([d.name for d in bench.atlas.list("u") if d.name in ("upper", "reverse")]) == 2
    both = bench.atlas.list("t")[-1]
    assert set(both.examples) == {*EXAMPLES["upper"], *EXAMPLES["reverse"]}


async def test_merged_domains_are_merged_again_and_changed_and_keep_their_names():
    bench = await Bench().open()
    await bench.atlas.merge("t", ["upper", "reverse"], "case")
    await bench.atlas.merge("t", ["case", "sort"], "all")
    assert (await bench.recommend("anything", task="upper")).plan.domain == "all"
    await bench.atlas.put(Domain(name="all", tenant="t", examples=("something new",)))
    assert (await bench.recommend("anything", task="reverse")).plan.domain == "all"
    with pytest.raises(Invalid) as refused:
        await bench.atlas.put(Domain(name="upper", tenant="t", examples=("x",)))
    assert refused.value.code == "merged_domain" and "'all'" in refused.value.message
    back = await bench.atlas.merge("t", ["all", "add"], "case")
    assert (back.name, back.tenant) == ("case", "t")
    assert (await bench.recommend("anything", task="all")).plan.domain == "case"
    assert [d.name for d in bench.atlas.list("t")] == ["case", "fact", "first", "last", "max"]


async def test_an_experiment_on_a_merged_domain_goes_on_under_its_new_name():
    bench = await Bench().open()
    arms = (Arm(name="control"), Arm(name="canary", model=SMALL))
    started = await bench.trials.create(Experiment(id="", tenant="t", name="n", domain="upper", arms=arms), "")
    await bench.atlas.merge("t", ["upper", "reverse"], "case")
    assert (await bench.recommend("reverse: walrus", who="u")).plan.experiment_id == started.id
    assert (await bench.trials.get("t", started.id)).domain == "upper"
    assert [e.domain for e in await bench.trials.list("t", "")] == ["case"]


async def test_what_is_everyones_is_not_deleted_by_one_tenant_and_the_error_says_whose_it_is():
    bench = await Bench().open()
    with pytest.raises(Denied, match="everyone's; delete it as the tenant 'shared'"):
        await bench.atlas.delete("t", "upper")
    with pytest.raises(Missing, match="no domain 'uper'"):
        await bench.atlas.delete("t", "uper")
    await bench.atlas.delete("shared", "upper")
    assert len(bench.atlas.list("t")) == len(EXAMPLES) - 1


@pytest.mark.parametrize(
    ("names", "into", "kind", "code"),
    [
        (["upper", "nothing"], "x", Missing, "unknown_domain"),
        (["upper"], "upper", Invalid, "bad_merge"),
        ([], "upper", Invalid, "bad_merge"),
        (["upper", "reverse"], "Bad Name", Invalid, "bad_domain"),
    ],
)
async def test_a_merge_without_sense_is_refused_and_changes_nothing(names, into, kind, code):
    bench = await Bench().open()
    with pytest.raises(kind) as refused:
        await bench.atlas.merge("t", names, into)
    assert refused.value.code == code
    assert len(bench.atlas.list("t")) == len(EXAMPLES)


async def test_a_specialist_of_one_leads_what_they_became():
    bench = await Bench().open()
    bench.models.append(replace(bench.models[1], name=f"{LARGE}@reverse", parent=LARGE))
    specialist = f"{LARGE}@reverse"
    await bench.atlas.put(
        Domain(name="reverse", tenant="t", examples=tuple(EXAMPLES["reverse"]), specialist=specialist)
    )
    await bench.atlas.merge("t", ["upper", "reverse"], "upper")
    assert (await bench.recommend("upper: walrus")).plan.main_model == specialist
