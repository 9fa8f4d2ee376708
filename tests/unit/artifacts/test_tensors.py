import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from catena.artifacts.tensors import MAX_HEADER_BYTES, header_length, parse_header
from catena.kit.errors import Invalid

ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def parse(data: bytes) -> dict[str, tuple[str, tuple[int, ...]]]:
    length = header_length(data[:8], len(data), "w")
    found = parse_header(data[8 : 8 + length], len(data) - 8 - length, "w")
    return {name: (info.dtype, info.shape) for name, info in found.items()}


def parse_tree(tree: object, data_bytes: int = 24) -> object:
    raw = json.dumps(tree).encode()
    return parse_header(raw, data_bytes, "w")


def test_reads_what_the_safetensors_library_writes() -> None:
    written: dict[str, np.ndarray] = {
        "a": np.zeros((2, 3), np.float32),
        "b": np.zeros((), np.float16),
        "c": np.zeros((0, 4), np.int64),
    }
    assert parse(save(written, metadata={"format": "pt"})) == {
        "a": ("F32", (2, 3)),
        "b": ("F16", ()),
        "c": ("I64", (0, 4)),
    }


@pytest.mark.parametrize(
    ("tree", "data_bytes", "says"),
    [
        ({"a": ENTRY, "b": ENTRY | {"data_offsets": [12, 36]}}, 36, "overlaps"),
        ({"a": ENTRY, "b": ENTRY}, 24, "overlaps"),
        ({"a": ENTRY, "b": ENTRY | {"data_offsets": [32, 56]}}, 56, "gap"),
        ({"a": ENTRY | {"data_offsets": [8, 32]}}, 32, "gap"),
        ({"a": ENTRY}, 23, "cut or padded"),
        ({"a": ENTRY}, 25, "cut or padded"),
        ({"a": ENTRY | {"shape": [2, 4]}}, 24, "needs 32"),
        ({"a": ENTRY | {"data_offsets": [24, 0]}}, 24, "offsets"),
        ({"a": ENTRY | {"data_offsets": [0]}}, 24, "offsets"),
        ({"a": ENTRY | {"data_offsets": [-24, 0]}}, 24, "offsets"),
        ({"a": ENTRY | {"shape": [-2, -3]}}, 24, "shape"),
        ({"a": ENTRY | {"shape": [True, 6]}}, 24, "shape"),
        ({"a": ENTRY | {"shape": [2.0, 3]}}, 24, "shape"),
        ({"a": ENTRY | {"shape": [1] * 9}}, 24, "shape"),
        ({"a": ENTRY | {"shape": [1 << 62, 1 << 62]}}, 24, "shape"),
        ({"a": ENTRY | {"dtype": "O"}}, 24, "type"),
        ({"a": ENTRY | {"dtype": ["F32"]}}, 24, "type"),
        ({"a": ENTRY | {"extra": 1}}, 24, "exactly"),
        ({"a": None}, 24, "exactly"),
        ({"a": ENTRY, "__metadata__": {"x": 1}}, 24, "metadata"),
        ({"a": ENTRY, "__metadata__": []}, 24, "metadata"),
        ([ENTRY], 24, "start"),
    ],
)
def test_a_header_that_breaks_a_rule_is_refused(tree: object, data_bytes: int, says: str) -> None:
    with pytest.raises(Invalid, match=says) as caught:
        parse_tree(tree, data_bytes)
    assert caught.value.code == "adapter_bad_header"


def test_a_giant_or_cut_header_is_refused_before_it_is_read() -> None:
    for length, file_bytes in ((1 << 63, 1 << 40), (MAX_HEADER_BYTES + 1, 1 << 40), (101, 108), (9, 16)):
        with pytest.raises(Invalid) as caught:
            header_length(length.to_bytes(8, "little"), file_bytes, "w")
        assert caught.value.code == "adapter_bad_header"


def test_a_tensor_named_twice_is_refused() -> None:
    entry = json.dumps(ENTRY)
    with pytest.raises(Invalid, match="twice"):
        parse_header(f'{{"a": {entry}, "a": {entry}}}'.encode(), 24, "w")


def refused_or_parsed(data: bytes) -> None:
    try:
        parse(data)
    except Invalid as error:
        assert error.code == "adapter_bad_header"


@settings(max_examples=200, deadline=None, database=None)
@given(st.binary(max_size=300))
def test_random_bytes_raise_nothing_but_invalid(data: bytes) -> None:
    refused_or_parsed(data)
    refused_or_parsed(len(data).to_bytes(8, "little") + data)


@settings(max_examples=200, deadline=None, database=None)
@given(st.data())
def test_a_mutated_file_raises_nothing_but_invalid(data: st.DataObject) -> None:
    raw = bytearray(save({"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float16)}, metadata={"format": "pt"}))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    refused_or_parsed(bytes(raw))


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "F4"]) | trees,
        "shape": st.lists(st.integers(0, 4), max_size=3) | trees,
        "data_offsets": st.lists(st.integers(0, 64), min_size=2, max_size=2) | trees,
    }
)


@settings(max_examples=200, deadline=None, database=None)
@given(st.dictionaries(st.sampled_from(["a", "b", "__metadata__", ""]), entries | trees), st.integers(0, 64))
def test_well_formed_json_of_any_content_raises_nothing_but_invalid(tree: dict[str, object], data_bytes: int) -> None:
    raw = json.dumps(tree).encode()
    refused_or_parsed(len(raw).to_bytes(8, "little") + raw + bytes(data_bytes))
