import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catena.adapters.core.records import AdapterRecord
from catena.adapters.core.refs import is_version
from catena.adapters.core.versions import following, order, recommend
from tests.unit.adapters.fakes import record

BASE = "b" * 64
VERSION = st.one_of(
    st.integers(0, 99).map(str),
    st.tuples(*[st.integers(0, 20)] * 3).map(lambda parts: ".".join(map(str, parts))),
    st.tuples(st.integers(0, 3), st.sampled_from(["alpha", "rc.1", "2"])).map(lambda p: f"{p[0]}.0.0-{p[1]}"),
)


def test_versions_are_ordered_as_people_count() -> None:
    versions = ["0.9.0", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-beta", "1.0.0-rc.2", "1.0.0-rc.11", "1.0.0", "1.2.0"]
    versions += ["1.10.0", "2", "2.0.1", "10"]

    mixed = random.Random(1).sample(versions, len(versions))
    assert sorted(mixed, key=order) == versions


@given(st.lists(VERSION, max_size=6))
def test_what_follows_is_a_version_and_newer_than_all(versions: list[str]) -> None:
    new = following(versions)

    assert is_version(new)
    assert all(order(new) > order(old) for old in versions)


@pytest.mark.parametrize(
    ("versions", "new"),
    [([], "1"), (["1", "3", "2"], "4"), (["1.2.9", "1.2.0"], "1.2.10"), (["1.0.0-rc.1"], "1.0.0")],
)
def test_what_follows_keeps_the_manner_of_counting(versions: list[str], new: str) -> None:
    assert following(versions) == new


def at(version: str, accuracy: float | None, **changes: object) -> AdapterRecord:
    metrics = {} if accuracy is None else {"accuracy": accuracy}
    return record("code", version=version, metrics=metrics, **changes)


def test_only_a_gain_of_more_than_two_points_is_worth_moving() -> None:
    current = at("1", 0.90)

    assert recommend(current, [current, at("2", 0.92)], BASE).record is None
    update = recommend(current, [current, at("2", 0.921), at("3", 0.94), at("4", 0.93)], BASE)

    assert update.record is not None
    assert (update.record.version, update.gain) == ("3", 0.04)
    assert "4 points" in update.reason


@pytest.mark.parametrize(
    "other",
    [
        at("1", 0.99),
        at("3", 0.99, status="withdrawn"),
        at("3", 0.99, base_digest="c" * 64),
        at("3", None),
        at("3", 0.5),
    ],
    ids=["older", "withdrawn", "another base", "untold", "worse"],
)
def test_what_is_older_or_does_not_fit_or_is_no_better_is_never_recommended(other: AdapterRecord) -> None:
    current = at("2", 0.80)

    update = recommend(current, [current, other], BASE)

    assert update.record is None
    assert update.reason


def test_without_an_accuracy_nothing_can_be_compared() -> None:
    update = recommend(at("1", None), [at("2", 0.99)], BASE)

    assert update.record is None
    assert "evaluate" in update.reason
