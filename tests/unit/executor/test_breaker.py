"""The circuit breaker as a state machine: what it must never do, whatever happens in whatever order."""

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from catena.executor.core.breaker import Breaker, BreakerLimits, Permit, Verdict

LIMITS = BreakerLimits(failures=3, open_s=1.0, longest_s=4.0)


class Model(RuleBasedStateMachine):
    """Calls come, go and end in any order while time passes; beside it stands what was seen from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(LIMITS)
        self.now_s = 0.0
        self.under_way: list[Permit] = []
        self.row = 0
        self.closed_at_s = 0.0

    @rule(seconds=st.floats(0.0, 5.0))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def a_call_asks_for_leave(self) -> None:
        before = self.breaker.state(self.now_s)
        probing = any(permit.probe for permit in self.under_way)
        permit = self.breaker.admit(self.now_s)
        if before == "closed":
            assert permit is not None
            assert not permit.probe
        elif before == "open":
            assert permit is None
            assert 0 < self.breaker.wait_s(self.now_s) <= LIMITS.longest_s
        else:
            assert (permit is None) == probing, "one probe at a time, and one as soon as none is under way"
        if permit is not None:
            self.under_way.append(permit)

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), verdict=st.sampled_from(["well", "failed", "untold"]))
    def a_call_ends(self, data: st.DataObject, verdict: Verdict) -> None:
        permit = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        before = self.breaker.state(self.now_s)
        self.breaker.settle(permit, verdict, self.now_s)
        after = self.breaker.state(self.now_s)
        if before != "closed" and after == "closed":
            assert permit.probe, "only a probe closes it"
            assert verdict == "well"
        if before == "closed" and after != "closed":
            assert verdict == "failed", "only a failure opens it"
        if permit.probe:
            assert after == {"well": "closed", "failed": "open", "untold": "half-open"}[verdict]

    @invariant()
    def at_most_one_probe_is_under_way(self) -> None:
        assert sum(permit.probe for permit in self.under_way) <= 1


Model.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestBreaker = Model.TestCase


def failed(breaker: Breaker, times: int, now_s: float) -> None:
    for _ in range(times):
        permit = breaker.admit(now_s)
        assert permit is not None
        breaker.settle(permit, "failed", now_s)


def test_failures_in_a_row_open_it_and_a_success_between_them_does_not_count() -> None:
    breaker = Breaker(LIMITS)
    failed(breaker, 2, 0.0)
    well = breaker.admit(0.0)
    assert well is not None
    breaker.settle(well, "well", 0.0)
    failed(breaker, 2, 0.0)
    assert breaker.state(0.0) == "closed"
    failed(breaker, 1, 0.0)
    assert breaker.state(0.9) == "open"
    assert breaker.state(1.0) == "half-open"


def test_each_failed_probe_doubles_the_pause_up_to_the_longest() -> None:
    breaker = Breaker(LIMITS)
    failed(breaker, 3, 0.0)
    now_s, pauses = 0.0, []
    for _ in range(4):
        now_s += breaker.wait_s(now_s)
        failed(breaker, 1, now_s)
        pauses.append(breaker.wait_s(now_s))
    assert pauses == [2.0, 4.0, 4.0, 4.0]


def test_a_call_from_before_it_opened_neither_closes_it_nor_keeps_it_open() -> None:
    breaker = Breaker(LIMITS)
    old = [breaker.admit(0.0), breaker.admit(0.0)]
    failed(breaker, 3, 0.0)
    for permit, verdict in zip(old, ("well", "failed"), strict=True):
        assert permit is not None
        breaker.settle(permit, verdict, 0.5)  # type: ignore[arg-type]
    assert breaker.state(0.9) == "open"
    assert breaker.state(1.0) == "half-open"
