import math
from typing import Any

import pytest

from catena.adapters.core.asking import MAX_BIASES, MAX_CONSTRAINT_CHARS, Question, check
from catena.adapters.core.work import Constraint, Message, Sampling
from catena.kit.errors import Invalid

HELLO = (Message(role="user", content="hello"),)
NAN = float("nan")


def refused(**fields: object) -> Invalid:
    with pytest.raises(Invalid) as caught:
        check(Question(model="base", messages=HELLO, **fields))  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("top_k", -1, "top_k -1"),
        ("top_k", 1 << 30, "top_k 1.07374e+09"),
        ("min_p", -0.1, "min_p -0.1"),
        ("min_p", 1.1, "min_p 1.1"),
        ("min_p", NAN, "min_p nan"),
        ("repetition_penalty", 0.0, "repetition_penalty 0 "),
        ("repetition_penalty", -1.0, "repetition_penalty -1"),
        ("repetition_penalty", NAN, "repetition_penalty nan"),
        ("repetition_penalty", math.inf, "repetition_penalty inf"),
        ("min_tokens", -1, "min_tokens -1"),
        ("presence_penalty", NAN, "presence_penalty nan"),
        ("frequency_penalty", 2.5, "frequency_penalty 2.5"),
        ("logit_bias", ((5, 101.0),), "token 5 101"),
        ("logit_bias", ((5, NAN),), "token 5 nan"),
        ("logit_bias", ((-2, 1.0),), "token -2"),
        ("logit_bias", tuple((token, 1.0) for token in range(MAX_BIASES + 1)), str(MAX_BIASES + 1)),
    ],
)
def test_sampling_out_of_bounds_is_refused_by_name_and_value(field: str, value: object, told: str) -> None:
    error = refused(sampling=Sampling(**{field: value}))  # type: ignore[arg-type]

    assert error.code == "bad_sampling"
    assert told in error.message


def test_more_tokens_than_the_most_are_refused() -> None:
    assert "min_tokens 6 is not from 0 to 5" in refused(sampling=Sampling(max_tokens=5, min_tokens=6)).message


@pytest.mark.parametrize("longer", [{"ignore_eos": True}, {"min_tokens": 3}])
def test_an_answer_of_a_certain_form_ends_where_the_form_does(longer: dict[str, Any]) -> None:
    error = refused(sampling=Sampling(**longer), constraint=Constraint(regex="a+"))

    assert error.code == "bad_constraint"


def test_sampling_at_its_bounds_passes() -> None:
    check(
        Question(
            model="base",
            messages=HELLO,
            sampling=Sampling(top_k=1, min_p=1.0, repetition_penalty=0.01, logit_bias=((0, -100.0), (9, 100.0))),
            constraint=Constraint(choices=("yes", "no")),
        )
    )


@pytest.mark.parametrize(
    ("constraint", "told"),
    [
        (Constraint(), "one of"),
        (Constraint(regex="a", json_schema="{}"), "one of"),
        (Constraint(choices=("yes", "")), "choice is empty"),
        (Constraint(regex="a" * (MAX_CONSTRAINT_CHARS + 1)), str(MAX_CONSTRAINT_CHARS + 1)),
    ],
)
def test_constraints_that_say_nothing_or_too_much_are_refused(constraint: Constraint, told: str) -> None:
    error = refused(constraint=constraint)

    assert error.code == "bad_constraint"
    assert told in error.message
