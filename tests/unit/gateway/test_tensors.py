"""Tensors of the Open Inference Protocol to rows and back."""

import json
import struct
from typing import Any

import pytest

from catena.gateway.core.tensors import Tensor, column, from_bytes, rows_of, tensor, to_bytes
from catena.kit.errors import Invalid

pytestmark = pytest.mark.unit


def test_a_row_is_a_text_a_number_or_a_list_of_numbers() -> None:
    assert rows_of([tensor("a", "BYTES", [2], ["x", "y"], {})]) == ["x", "y"]
    assert rows_of([tensor("a", "BYTES", [2, 1], [["x"], ["y"]], {})]) == ["x", "y"]
    assert rows_of([tensor("a", "FP32", [2], [1.5, 2], {})]) == [1.5, 2]
    assert rows_of([tensor("a", "FP32", [2, 2], [[1, 2], [3, 4]], {})]) == [[1, 2], [3, 4]]
    assert rows_of([tensor("a", "INT64", [1, 1], [7], {})]) == [[7]]


def test_several_inputs_make_a_mapping_a_row() -> None:
    texts, ages = tensor("text", "BYTES", [2], ["x", "y"], {}), tensor("age", "INT32", [2], [1, 2], {})
    assert rows_of([texts, ages]) == [{"text": "x", "age": 1}, {"text": "y", "age": 2}]


def test_bytes_are_read_little_endian_with_their_lengths() -> None:
    raw = struct.pack("<I1sI2s", 1, b"x", 2, "é".encode())
    assert from_bytes("a", "BYTES", [2], raw, {}).data == ["x", "é"]
    assert tuple(from_bytes("a", "FP32", [2], struct.pack("<2f", 1.5, -2.0), {}).data) == (1.5, -2.0)


@pytest.mark.parametrize(("datatype", "data"), [("BYTES", ["x", "", "é"]), ("FP64", [1.5, -2.0]), ("BOOL", [True])])
def test_what_is_written_as_bytes_is_read_again(datatype: str, data: list[Any]) -> None:
    raw = to_bytes(tensor("a", datatype, [len(data)], data, {}))
    assert list(from_bytes("a", datatype, [len(data)], raw, {}).data) == data


@pytest.mark.parametrize(
    ("make", "args"),
    [
        (tensor, ("FP32", [3], [1, 2])),
        (tensor, ("FP32", [1], ["x"])),
        (tensor, ("BYTES", [1], [1])),
        (tensor, ("INT64", [1], [True])),
        (tensor, ("FP99", [1], [1])),
        (tensor, ("FP32", [-1], [])),
        (tensor, ("FP32", [1 << 40], [])),
        (tensor, ("FP32", [1], [float("inf")])),
        (from_bytes, ("FP32", [1], b"abc")),
        (from_bytes, ("FP32", [2], b"abcd")),
        (from_bytes, ("FP32", [1], struct.pack("<f", float("nan")))),
        (from_bytes, ("BYTES", [1], b"\x05\x00\x00\x00ab")),
        (from_bytes, ("BYTES", [1], b"\x01\x00")),
        (from_bytes, ("BYTES", [1], b"\x01\x00\x00\x00\xff")),
    ],
)
def test_what_does_not_agree_is_refused_by_name(make: Any, args: Any) -> None:
    with pytest.raises(Invalid, match="tensor 'in'"):
        make("in", *args, {})


def test_inputs_of_different_length_or_the_same_name_are_refused() -> None:
    one, two = tensor("a", "FP32", [1], [1], {}), tensor("b", "FP32", [2], [1, 2], {})
    for inputs in ([one, two], [one, one], []):
        with pytest.raises(Invalid):
            rows_of(inputs)


@pytest.mark.parametrize(
    ("results", "datatype", "shape", "data"),
    [
        ([1, 2.5], "FP64", (2,), [1.0, 2.5]),
        ([[1, 2], [3, 4]], "FP64", (2, 2), [1.0, 2.0, 3.0, 4.0]),
        ([[1], [2, 3]], "BYTES", (2,), ["[1]", "[2, 3]"]),
        (["a", {"b": 1}], "BYTES", (2,), ["a", '{"b": 1}']),
        ([True], "BYTES", (1,), ["true"]),
        ([], "BYTES", (0,), []),
    ],
)
def test_results_become_the_tensor_that_fits_them(results: Any, datatype: str, shape: Any, data: Any) -> None:
    made = column("out", results, json.dumps)
    assert made == Tensor(name="out", datatype=datatype, shape=shape, data=data)
