"""Nothing is lost and nothing happens twice: every event twice, a crash at every point, any order."""

import asyncio
import contextlib
import itertools

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from catena.kit.errors import CatenaError, Conflict, Unavailable
from catena.learner.core.records import ENDED
from tests.unit.learner.fakes import Bench, Crash, News

pytestmark = pytest.mark.unit
LEGAL = {
    "training": {"canary", "rejected", "failed"},
    "canary": {"promoted", "rolled_back"},
    "promoted": {"rolled_back"},
}


async def story(bench):
    """Two rounds of the loop: one version is promoted, the next one loses."""
    await bench.job_ends(await bench.fill())
    await bench.canary_ends("won")
    await bench.job_ends(await bench.fill(start=2))
    await bench.canary_ends("lost")
    job = await bench.fill(start=4)
    await bench.job_ends(job, "rejected", "worse than its base")
    return bench


async def end_of(bench):
    promotions = sorted(await bench.learner.promotions("acme", ""), key=lambda p: p.experiment_id or "z")
    return {
        "promotions": [(p.state, p.candidate, p.incumbent, p.previous, p.reason, p.metrics) for p in promotions],
        "histories": sorted(bench.library.history.values()),
        "rows": sorted(bench.trainer.rows.values()),
        "datasets": [(d.state, d.rows) for d in await bench.learner.datasets("acme")],
        "aliases": bench.registry.aliases,
        "moves": bench.registry.moves,
        "withdrawn": bench.registry.withdrawn,
        "specialists": bench.router.specialists,
        "examples": {domain: sorted(texts) for domain, texts in bench.router.examples.items()},
        "trials": len(bench.router.trials),
        "feedback": sum(news.kind == "feedback" for news in bench.library.news),
    }


async def test_a_crash_after_any_effect_leads_to_the_same_end():
    straight = await story(Bench())
    expected = await end_of(straight)
    assert expected["promotions"][0][0] == "promoted"
    assert expected["histories"] == [
        ["training", "canary", "promoted"],
        ["training", "canary", "rolled_back"],
        ["training", "rejected"],
    ]
    assert len(straight.fuse.passed) > 25
    for number, point in enumerate(straight.fuse.passed, 1):
        crashed = await story(Bench(crash_at=number))
        assert await end_of(crashed) == expected, f"after a crash at {point} ({number})"


async def test_every_event_told_twice_has_its_effect_once():
    class Twice(Bench):
        async def deliver(self, news):
            await super().deliver(news)
            await super().deliver(news)

    assert await end_of(await story(Twice())) == await end_of(await story(Bench()))


async def test_all_events_told_again_at_the_very_end_change_nothing():
    bench = await story(Bench())
    before = await end_of(bench)
    late = [
        *bench.library.news,
        *(News("job", "acme", id_) for id_ in bench.trainer.jobs),
        *(News("verdict", "acme", id_) for id_ in bench.router.trials),
    ]
    for news in [*late, *reversed(late)]:
        await bench.deliver(news)
    assert await end_of(bench) == before


@pytest.mark.parametrize("verb", ["promote", "roll_back"])
async def test_a_step_by_hand_that_crashed_can_be_taken_again(verb):
    for number in range(1, 6):
        bench = Bench()
        await bench.job_ends(await bench.fill())
        id_ = (await bench.only()).id
        if verb == "roll_back":
            await bench.canary_ends("won")
        bench.fuse.at = len(bench.fuse.passed) + number
        try:
            await getattr(bench.learner, verb)("acme", id_, "")
        except Crash:
            bench.learner = bench.start()
            with contextlib.suppress(Conflict):  # it had been committed
                await getattr(bench.learner, verb)("acme", id_, "")
        assert await bench.states() == ["promoted" if verb == "promote" else "rolled_back"]
        wanted = "1" if verb == "promote" else ""
        assert bench.registry.aliases == {"base@swap": wanted}
        assert bench.router.specialists == {"swap": "base@swap" if wanted else ""}


async def test_a_verdict_that_was_told_before_the_canary_was_noted_is_asked_for():
    bench = Bench()
    job = await bench.fill()
    bench.trainer.end(job, "succeeded")
    bench.fuse.at = len(bench.fuse.passed) + 2
    told = News("job", "acme", job)
    with pytest.raises(Crash, match="canary"):
        await bench.deliver(told)
    (trial,) = bench.router.trials
    bench.router.decide(trial, "won")
    await bench.deliver(News("verdict", "acme", trial))
    assert await bench.states() == ["training"]
    await bench.deliver(told)
    assert await bench.states() == ["promoted"]


class AnyOrder(RuleBasedStateMachine):
    """Feedback, jobs, verdicts and hands in any order; each event late, twice, or cut off by a crash."""

    def __init__(self):
        super().__init__()
        self.runner = asyncio.Runner()
        self.bench = Bench()
        self.count = 0
        self.early = {}
        self.heard = set()

    def run(self, work):
        return self.runner.run(work)

    def events(self):
        jobs = [News("job", "acme", job.job_id) for job in self.bench.trainer.jobs.values() if job.ended]
        trials = [News("verdict", "acme", t) for t, v in self.bench.router.trials.items() if v.state != "running"]
        return [*self.bench.library.news, *jobs, *trials]

    def attempt(self, work):
        """Whether it got through; a crash restarts the learner."""
        try:
            self.run(work)
        except (Crash, Unavailable):
            self.bench.learner = self.bench.start()
            return False
        return True

    def hand_over(self, news):
        if self.attempt(self.bench.deliver(news)):
            self.heard.add(news)

    @initialize()
    def begin(self):
        self.correct("swap")
        self.correct("swap")

    @rule(task=st.sampled_from(["swap", "rot13"]))
    def correct(self, task):
        self.count += 1
        self.run(self.bench.say(f"{task} {self.count}", task))

    @rule(task=st.sampled_from(["swap", "rot13"]))
    def correct_early(self, task):
        self.count += 1
        self.early[f"{task} {self.count}"] = task
        self.run(self.bench.say_early(f"{task} {self.count}"))

    @precondition(lambda self: self.early)
    @rule(choice=st.integers(0, 99))
    def record(self, choice):
        prompt = list(self.early)[choice % len(self.early)]
        self.bench.run(prompt, self.early.pop(prompt))

    @rule(choice=st.integers(0, 1 << 30), crash=st.integers(0, 6))
    def deliver(self, choice, crash):
        news = self.events()
        self.bench.fuse.at = len(self.bench.fuse.passed) + crash if crash else 0
        self.hand_over(news[choice % len(news)])
        self.bench.fuse.at = 0

    @rule(seed=st.integers(0, 1 << 30))
    def deliver_all_in_some_order(self, seed):
        news = self.events()
        for number in range(len(news)):
            self.hand_over(news[(seed + number * 7) % len(news)])

    @precondition(lambda self: self.bench.trainer.jobs)
    @rule(choice=st.integers(0, 99), state=st.sampled_from(["succeeded", "succeeded", "rejected", "failed"]))
    def job_ends(self, choice, state):
        jobs = list(self.bench.trainer.jobs)
        self.bench.trainer.end(jobs[choice % len(jobs)], state)

    @precondition(lambda self: self.bench.router.trials)
    @rule(choice=st.integers(0, 99), state=st.sampled_from(["won", "lost", "undecided"]))
    def trial_ends(self, choice, state):
        trials = list(self.bench.router.trials)
        self.bench.router.decide(trials[choice % len(trials)], state)

    @precondition(lambda self: self.bench.library.history)
    @rule(choice=st.integers(0, 99), verb=st.sampled_from(["promote", "roll_back"]))
    def by_hand(self, choice, verb):
        ids = list(self.bench.library.history)
        try:
            self.attempt(getattr(self.bench.learner, verb)("acme", ids[choice % len(ids)], ""))
        except CatenaError as error:
            assert error.code in ("not_in_canary", "nothing_to_roll_back")

    @invariant()
    def every_history_is_legal(self):
        for history in self.bench.library.history.values():
            assert history[0] == "training"
            assert all(after in LEGAL[before] for before, after in itertools.pairwise(history))
            assert history.count("promoted") <= 1

    @invariant()
    def one_promotion_a_data_set_and_no_sample_in_two(self):
        datasets = self.run(self.bench.learner.datasets("acme"))
        promotions = self.run(self.bench.learner.promotions("acme", ""))
        owners = [p.dataset_id for p in promotions]
        assert len(owners) == len(set(owners))
        prompts = [s.prompt for d in datasets for s in self.run(self.bench.library.samples(d.id))]
        assert len(prompts) == len(set(prompts))

    @invariant()
    def what_is_stable_lives_and_was_promoted_or_is_about_to_be(self):
        for name, version in self.bench.registry.aliases.items():
            assert not version or f"{name}:{version}" not in self.bench.registry.withdrawn

    def teardown(self):
        self.quiesce()
        self.run(self.finish())
        self.runner.close()

    def quiesce(self):
        """Everything ends, and every event that was never acknowledged comes; no other comes again."""
        self.bench.fuse.at = 0
        for prompt, task in self.early.items():
            self.bench.run(prompt, task)
        for _ in range(200):
            for news in self.events():
                if news not in self.heard:
                    self.hand_over(news)
            for id_ in list(self.bench.trainer.jobs):
                self.bench.trainer.end(id_, "succeeded")
            for id_ in list(self.bench.router.trials):
                self.bench.router.decide(id_, "won")
            if self.heard.issuperset(self.events()):
                return
        raise AssertionError("the loop never comes to rest")

    async def finish(self):
        promotions = await self.bench.learner.promotions("acme", "")
        assert all(p.state in ENDED for p in promotions)
        assert len(promotions) == len(self.bench.trainer.jobs)
        live = {p.candidate for p in promotions if p.state == "promoted"}
        for p in promotions:
            assert (p.candidate in self.bench.registry.withdrawn) == (p.state == "rolled_back")
        for name, version in self.bench.registry.aliases.items():
            assert not version or f"{name}:{version}" in live
        for dataset in await self.bench.learner.datasets("acme"):
            assert dataset.state in ("collecting", "done")
        assert sum([d.rows for d in await self.bench.learner.datasets("acme")]) == self.count


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
