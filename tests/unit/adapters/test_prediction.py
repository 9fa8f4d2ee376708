import pytest

from catena.adapters.core.prediction import SCOPES, SESSION_S, SUCCESSORS, Predictor

USER, FLOW = ("user", "acme", "ann"), ("workflow", "acme", "w")


def walk(predictor: Predictor, models: str, *, scope: tuple[str, ...] = USER, begin_s: float = 0.0) -> float:
    """One use every ten seconds; the time after the last."""
    for step, model in enumerate(models):
        predictor.observe(scope, model, begin_s + 10.0 * step)
    return begin_s + 10.0 * len(models)


def chances(predictor: Predictor, *scopes: tuple[str, ...], after: str, now_s: float = 0.0) -> dict[str, float]:
    return {f.model: f.probability for f in predictor.forecast(scopes, after, now_s)}


def test_one_precedent_is_no_habit_and_three_are() -> None:
    predictor = Predictor()
    walk(predictor, "ab")
    assert chances(predictor, USER, after="a") == {"b": 0.5}

    walk(predictor, "ababab")

    assert chances(predictor, USER, after="a")["b"] > 0.7
    assert predictor.forecast([USER], "c", 0) == []


def test_several_successors_share_the_chance_the_likeliest_first() -> None:
    predictor = Predictor()
    now_s = walk(predictor, "abacabab")

    found = predictor.forecast([USER], "a", now_s)

    assert [f.model for f in found] == ["b", "c"]
    assert [f.probability for f in found] == [pytest.approx(3 / 5, rel=1e-2), pytest.approx(1 / 5, rel=1e-2)]


def test_a_user_and_a_workflow_speak_together_and_nobody_else() -> None:
    predictor = Predictor()
    walk(predictor, "ab")
    walk(predictor, "abab", scope=FLOW)
    walk(predictor, "acacacac", scope=("user", "acme", "bob"))

    assert chances(predictor, USER, FLOW, after="a")["b"] == pytest.approx(0.75, rel=1e-2)
    assert "c" not in chances(predictor, USER, FLOW, after="a")


def test_old_habits_fade() -> None:
    predictor = Predictor(half_life_s=1000)
    now_s = walk(predictor, "ab" * 20)
    before = chances(predictor, USER, after="a", now_s=now_s)["b"]

    later = chances(predictor, USER, after="a", now_s=now_s + 10_000)["b"]

    assert before > 0.9
    assert later < 0.05


def test_the_wait_until_needed_is_the_usual_one() -> None:
    predictor = Predictor()
    for round_ in range(50):
        predictor.observe(USER, "a", 100.0 * round_)
        predictor.observe(USER, "b", 100.0 * round_ + 30)

    found = predictor.forecast([USER], "a", 5000)

    assert found[0].in_s == pytest.approx(30)


def test_what_comes_after_a_long_pause_follows_nothing() -> None:
    predictor = Predictor()

    assert predictor.observe(USER, "a", 0)
    assert not predictor.observe(USER, "a", 10)
    assert predictor.observe(USER, "b", 20 + SESSION_S)

    assert "b" not in chances(predictor, USER, after="a")


def test_it_keeps_to_its_bounds() -> None:
    predictor = Predictor()
    for number in range(SCOPES + 10):
        predictor.observe(("user", str(number)), "a", number)
        predictor.observe(("user", str(number)), "b", number + 1)
    assert chances(predictor, ("user", "0"), after="a") == {}
    assert chances(predictor, ("user", str(SCOPES)), after="a") == {"b": 0.5}

    for number in range(5 * SUCCESSORS):
        predictor.observe(USER, "a", number)
        predictor.observe(USER, f"next-{number}", number)
    assert len(predictor.forecast([USER], "a", 0)) == SUCCESSORS
