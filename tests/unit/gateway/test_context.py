import pytest

from catena.gateway.handlers.context import read_context
from catena.kit.errors import Invalid


def test_headers_win_over_metadata_and_the_rest_is_kept() -> None:
    context = read_context(
        {"x-catena-task": "reverse", "x-catena-max-cost": "0.5"}, {"task": "upper", "max_cost": "9", "mine": "1"}, "ann"
    )
    assert (context.task, context.max_cost_usd, context.user_id) == ("reverse", 0.5, "ann")
    assert dict(context.metadata) == {"mine": "1"}


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"x-catena-max-cost": "-1"}, "bad_cap"),
        ({"x-catena-max-cost": "nan"}, "bad_cap"),
        ({"x-catena-max-latency": "soon"}, "bad_cap"),
        ({"x-catena-objective": "luck"}, "unknown_objective"),
        ({"x-catena-critical": "perhaps"}, "bad_context"),
    ],
)
def test_nonsense_is_refused_with_its_code(headers: dict[str, str], code: str) -> None:
    with pytest.raises(Invalid) as told:
        read_context(headers, {})
    assert told.value.code == code
