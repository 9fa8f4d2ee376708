"""Deadlines, retries, streams, journals and background runs around the strategies."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from catena.executor.core.admission import Errand, check_errand
from catena.executor.core.attempts import Limits
from catena.executor.core.background import Pace, RunEnd, StoredRun, work_off
from catena.executor.core.chat import Context, Delta, Sampling
from catena.executor.core.events import RunEvent, StageResult
from catena.executor.core.executor import Executor
from catena.executor.core.parts import Settings
from catena.executor.core.streaming import stream
from catena.executor.handlers.wire import generate_request
from catena.kit.clock import ManualClock, World, still_world
from catena.kit.errors import Exhausted, Invalid, Late, Unavailable
from catena.kit.testing import eventually, running
from catena.plan.model import Plan, Role, Shape
from tests.unit.executor.fakes import DictJournal, bed, errand, first_events, plan, stage

ANY = plan(Shape.SEQUENTIAL, stage(Role.MAIN, "large"))
CASCADE = plan(Shape.CASCADE, stage(Role.FAST, "small"), stage(Role.MAIN, "large"), threshold=0.5)


async def test_a_failure_that_passes_is_tried_again_and_both_are_recorded() -> None:
    table = bed(large=[Exhausted("busy", retry_after_s=0.001), "fine"])
    finished, _ = await table.run(ANY)
    assert [(one.attempt, one.outcome, one.error_code) for one in finished.stages] == [
        (1, "failed", "exhausted"),
        (2, "accepted", ""),
    ]


async def test_critical_requests_are_tried_three_times() -> None:
    busy = Exhausted("busy", retry_after_s=0.001)
    table = bed(large=[busy, busy, "fine"])
    finished, _ = await table.run(ANY, context=Context(critical=True))
    assert len(finished.stages) == 3


async def test_a_model_learns_who_asks_and_in_which_workflow() -> None:
    table = bed(large="fine")
    await table.run(ANY, context=Context(user_id="ann", workflow_type="writing", task="code"))
    told = generate_request(table.provider.asked[0]).context
    assert (told.user_id, told.workflow_type, told.task) == ("ann", "writing", "code")


async def test_a_provider_that_asks_for_more_time_than_there_is_is_not_waited_for() -> None:
    table = bed(large=[Exhausted("busy", retry_after_s=120), "fine"])
    with pytest.raises(Exhausted):
        await table.run(ANY)
    assert len(table.provider.asked) == 1


async def test_the_deadline_ends_every_stage_and_the_record_says_so() -> None:
    table = bed(World(), large="never")
    table.provider.hang.add("large")
    with pytest.raises(Late) as caught:
        await table.run(ANY, context=Context(max_latency_ms=20))
    assert caught.value.code == "deadline_exceeded"
    assert "max_latency_ms 20" in caught.value.message
    assert table.records.added[0].error_code == "deadline_exceeded"


async def test_later_stages_get_only_what_is_left_of_the_deadline() -> None:
    world = still_world()
    clock = world.clock
    assert isinstance(clock, ManualClock)

    def slowly(ask: Any) -> str:
        clock.advance(6)
        return "I cannot"

    table = bed(world, small=[slowly], large="fine")
    generous = replace(CASCADE, stages=(replace(CASCADE.stages[0], timeout_s=20.0), CASCADE.stages[1]))
    await table.run(generous, left_s=10.0)
    assert [ask.timeout_s for ask in table.provider.asked] == [10.0, 4.0]


async def test_a_finished_call_is_never_made_again() -> None:
    journal = DictJournal()
    table = bed(small="I cannot", large=[Unavailable("crash", code="model_disabled"), "fine"])
    with pytest.raises(Unavailable):
        await table.run(CASCADE, journal=journal)
    finished, _ = await table.run(CASCADE, journal=journal)
    assert finished.choices[0].text == "fine"
    assert table.provider.models_asked() == ["small", "large", "large"]
    assert [one.name for one in finished.stages] == ["fast", "main"]
    assert finished.cost_usd == pytest.approx(sum(one.cost_usd for one in finished.stages))


CRASH = Unavailable("crash", code="model_disabled")


async def test_what_was_looked_up_before_a_crash_is_not_looked_up_again_and_does_not_change() -> None:
    journal, table = DictJournal(), bed(large=[CRASH, "fine"])
    table.memory.facts["question"] = ["old"]
    table.features.values["user/ada"] = {"tier": "gold"}
    knows = Context(memory_collection="notes", feature_vector="user/ada/profile")
    with pytest.raises(Unavailable):
        await table.run(ANY, context=knows, journal=journal)
    table.memory.facts["question"], table.features.values["user/ada"] = ["new"], {"tier": "lead"}
    await table.run(ANY, context=knows, journal=journal)
    assert len(table.memory.asked) == 1
    assert table.provider.said_to("large", 1) == table.provider.said_to("large", 0)
    assert "old" in table.provider.said_to("large", 1)
    assert "gold" in table.provider.said_to("large", 1)


async def test_a_search_that_crashed_goes_on_with_what_it_had_found() -> None:
    journal, table = DictJournal(), bed(large=["<search>sky</search>", CRASH, "<answer>blue</answer>"])
    table.memory.facts["sky"] = ["old"]
    searching = plan(Shape.SEARCH, stage(Role.MAIN, "large"), collection="notes")
    with pytest.raises(Unavailable):
        await table.run(searching, journal=journal)
    table.memory.facts["sky"] = ["new"]
    finished, _ = await table.run(searching, journal=journal)
    assert (finished.choices[0].text, len(table.memory.asked)) == ("blue", 1)
    assert "<context>old</context>" in finished.trace


async def texts_of(*deltas: Delta, advance_s: float) -> list[str]:
    clock = ManualClock()

    async def work(emit: Any) -> None:
        for delta in deltas:
            await emit(delta)
            clock.advance(advance_s)

    return [event.text async for event in stream(work, window_s=0.025, clock=clock) if isinstance(event, Delta)]


async def test_the_first_delta_passes_at_once_and_close_ones_are_joined() -> None:
    words = [Delta(text=word) for word in ("a", "b", "c")] + [Delta(finish_reason="stop")]
    assert await texts_of(*words, advance_s=0.0) == ["a", "bc"]


async def test_answers_that_interleave_are_kept_apart() -> None:
    words = (Delta(text="a"), Delta(text="b", index=1), Delta(text="c", index=1), Delta(text="d"))
    assert await texts_of(*words, advance_s=0.0) == ["a", "bc", "d"]


async def test_a_stream_ends_with_the_error_of_its_work() -> None:
    async def work(emit: Any) -> None:
        await emit(Delta(text="a"))
        raise Unavailable("cut")

    heard: list[RunEvent] = []
    with pytest.raises(Unavailable, match="cut"):
        async for event in stream(work, window_s=0, clock=ManualClock()):
            heard.append(event)  # noqa: PERF401 - the events before the error are what is asked about
    assert len(heard) == 1


async def test_a_listener_that_stops_reading_stops_the_work() -> None:
    emitted = 0

    async def work(emit: Any) -> None:
        nonlocal emitted
        while True:
            await emit(StageResult(name="s", role=Role.MAIN, model="m"))
            emitted += 1

    await first_events(stream(work, window_s=0, clock=ManualClock()), 1)
    assert emitted < 300


async def test_leaving_a_run_closes_the_model() -> None:
    table = bed(large="a b c")
    table.provider.hang.add("large")
    core = Executor(parts=table.parts, runs=MemoryRuns(), archive=None)  # type: ignore[arg-type]
    await first_events(core.run(errand(ANY, stream=True)), 2)
    assert table.provider.closed == ["large"]


@pytest.mark.parametrize(
    "wrong",
    [
        errand(ANY, context=Context(max_cost_usd=float("nan"))),
        errand(ANY, context=Context(max_latency_ms=-1)),
        errand(ANY, sampling=Sampling(temperature=float("nan"))),
        errand(ANY, sampling=Sampling(n=99)),
        errand(ANY, json_schema={"type": "nonsense"}),
        errand(ANY, json_schema={"type": "object"}, regex="a"),
        errand(ANY, regex="a", choices=("a",)),
        errand(ANY, sampling=Sampling(top_k=-1)),
        errand(ANY, sampling=Sampling(max_tokens=4, min_tokens=5)),
        errand(ANY, sampling=Sampling(min_p=float("nan"))),
        errand(ANY, sampling=Sampling(repetition_penalty=0.0)),
        errand(ANY, sampling=Sampling(logit_bias=((7, 101.0),))),
        errand(plan(Shape.SEQUENTIAL, stage(Role.MAIN, "vectors"))),
        errand(plan(Shape.SEQUENTIAL, stage(Role.MAIN, "large", timeout_s=float("nan")))),
        errand(plan(Shape.CASCADE, stage(Role.FAST, "small"), stage(Role.MAIN, "large"), threshold=2.0)),
        errand(plan(Shape.CONSENSUS, stage(Role.MEMBER, "small"), stage(Role.MEMBER, "small"))),
        errand(Plan(shape=Shape.SEQUENTIAL)),
    ],
)
def test_nonsense_is_refused_before_anything_runs(wrong: Errand) -> None:
    with pytest.raises(Invalid):
        check_errand(wrong, bed().parts.models)


async def test_texts_are_recorded_only_for_tenants_that_keep_them() -> None:
    keeping = Settings(limits=Limits(), keeps_texts=lambda tenant: tenant == "acme")
    table = bed(settings=keeping, large="mail a@b.org")
    await table.run(ANY, "from c@d.org")
    await table.run(ANY, "secret", tenant="other")
    mine, theirs = table.records.added
    assert (mine.prompt[0].content, mine.answer) == ("from [email]", "mail [email]")
    assert (theirs.prompt, theirs.answer) == ((), "")


class MemoryRuns:
    """Background runs in a dictionary; leases hold until released."""

    def __init__(self) -> None:
        self.runs: dict[str, StoredRun] = {}
        self.held: dict[str, str] = {}
        self.unwanted: set[str] = set()
        self.calls: dict[tuple[str, str], bytes] = {}
        self.records: list[RunEnd] = []

    async def submit(self, run: StoredRun, request_id: str) -> StoredRun:
        self.runs[run.id] = run
        return run

    async def get(self, tenant: str, run_id: str) -> StoredRun | None:
        run = self.runs.get(run_id)
        return run if run and run.tenant == tenant else None

    async def claim(self, holder: str, most: int, lease_s: float) -> Sequence[StoredRun]:
        free = [run for run in self.runs.values() if run.state in ("queued", "running") and run.id not in self.held]
        for run in free[:most]:
            self.held[run.id] = holder
            self.runs[run.id] = replace(run, state="running")
        return free[:most]

    async def renew(self, holder: str, run_ids: Sequence[str], lease_s: float) -> dict[str, bool]:
        return {run_id: run_id in self.unwanted for run_id in run_ids if self.held.get(run_id) == holder}

    async def release(self, holder: str) -> None:
        self.held = {run_id: owner for run_id, owner in self.held.items() if owner != holder}

    async def recall(self, run_id: str, key: str) -> bytes | None:
        return self.calls.get((run_id, key))

    async def note(self, run_id: str, key: str, value: bytes) -> None:
        self.calls[run_id, key] = value

    async def progress(self, run_id: str, stages: Sequence[StageResult]) -> None:
        self.runs[run_id] = replace(self.runs[run_id], stages=tuple(stages))

    async def finish(self, holder: str, run_id: str, end: RunEnd) -> None:
        if self.held.get(run_id) == holder:
            self.runs[run_id] = replace(self.runs[run_id], state=end.state, result=end.result, error=end.error)
            self.records.append(end)

    async def wish_end(self, tenant: str, run_id: str) -> StoredRun | None:
        self.unwanted.add(run_id)
        return self.runs[run_id]

    async def changed(self, timeout_s: float) -> None:
        await asyncio.sleep(0)


QUICK = Pace(poll_s=0.001)


async def submitted(table: Any, runs: MemoryRuns, asked: Plan) -> str:
    core = Executor(parts=table.parts, runs=runs, archive=None)  # type: ignore[arg-type]
    return (await core.submit(errand(asked), "user")).id


async def test_a_background_run_ends_with_result_and_record_together() -> None:
    table, runs = bed(large="done"), MemoryRuns()
    run_id = await submitted(table, runs, ANY)
    async with running(work_off(table.parts, runs, QUICK)):
        await eventually(lambda: runs.runs[run_id].state == "succeeded")
    assert runs.runs[run_id].result is not None
    assert runs.records[0].record is not None
    assert runs.records[0].record.id == run_id
    assert table.records.added == []


async def test_a_background_run_that_fails_says_why() -> None:
    table, runs = bed(large=[Invalid("no", code="content_filter")]), MemoryRuns()
    run_id = await submitted(table, runs, ANY)
    async with running(work_off(table.parts, runs, QUICK)):
        await eventually(lambda: runs.runs[run_id].state == "failed")
    assert runs.runs[run_id].error == "content_filter: no"


async def test_a_stopped_worker_leaves_its_runs_to_the_next_which_repeats_nothing() -> None:
    table, runs = bed(small="I cannot", large="fine"), MemoryRuns()
    table.provider.hang.add("large")
    run_id = await submitted(table, runs, CASCADE)
    async with running(work_off(table.parts, runs, QUICK)):
        await eventually(lambda: "large" in table.provider.models_asked())
    assert runs.runs[run_id].state == "running"
    assert runs.records == []
    table.provider.hang.clear()
    async with running(work_off(table.parts, runs, QUICK)):
        await eventually(lambda: runs.runs[run_id].state == "succeeded")
    assert table.provider.models_asked() == ["small", "large", "large"]


async def test_a_cancelled_run_ends_as_cancelled_with_its_bill() -> None:
    table, runs = bed(large="never"), MemoryRuns()
    table.provider.hang.add("large")
    run_id = await submitted(table, runs, ANY)
    async with running(work_off(table.parts, runs, QUICK)):
        await eventually(lambda: bool(table.provider.asked))
        await runs.wish_end("acme", run_id)
        await eventually(lambda: runs.runs[run_id].state == "cancelled")
    record = runs.records[0].record
    assert record is not None
    assert (record.outcome, record.cost_usd > 0) == ("cancelled", True)
