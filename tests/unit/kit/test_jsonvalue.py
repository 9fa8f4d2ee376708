import json

import pytest
from google.protobuf.struct_pb2 import Value
from hypothesis import given
from hypothesis import strategies as st

from catena.kit.errors import Invalid
from catena.kit.jsonvalue import from_json, struct_from_json, struct_to_json, to_json

pytestmark = pytest.mark.unit

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
leaf = (
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | text
)
data = st.recursive(leaf, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4))


@given(data)
def test_json_survives_the_wire(value):
    assert to_json(Value.FromString(from_json(value).SerializeToString())) == value


@given(st.dictionaries(text, data, max_size=4))
def test_objects_survive_the_wire(value):
    assert struct_to_json(struct_from_json(value)) == value


def test_whole_numbers_become_integers_and_booleans_stay():
    assert json.dumps(to_json(from_json([1.0, True, 0.5, 1e300]))) == "[1, true, 0.5, 1e+300]"


def test_an_absent_value_is_null():
    assert to_json(Value()) is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "a\0b", {"a\0": 1}])
def test_what_no_store_could_keep_is_refused(bad):
    with pytest.raises(Invalid):
        to_json(from_json([bad]))
