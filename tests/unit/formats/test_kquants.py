"""Our K-quantisers against `gguf`'s readers of the same blocks."""

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from hypothesis import given, settings
from hypothesis import strategies as st

from catena.artifacts.formats.kquants import quantise_q4_k, quantise_q6_k

pytestmark = pytest.mark.unit
KINDS = {"Q4_K": (quantise_q4_k, Type.Q4_K, 144), "Q6_K": (quantise_q6_k, Type.Q6_K, 210)}
SHAPES = {
    "normal": lambda rng: rng.normal(size=(64, 512)),
    "uniform": lambda rng: rng.uniform(-1, 1, size=(64, 512)),
    "positive": lambda rng: rng.uniform(0.5, 1, size=(64, 512)),
    "outliers": lambda rng: rng.standard_t(2, size=(64, 512)),
    "tiny": lambda rng: rng.normal(size=(64, 512)) * 1e-3,
}


def through(values: np.ndarray, kind: str) -> np.ndarray:
    quantise, type_, size = KINDS[kind]
    raw = quantise(values)
    assert raw.dtype == np.uint8
    assert raw.shape == (*values.shape[:-1], values.shape[-1] // 256 * size)
    return gguf.quants.dequantize(raw, type_)


def error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(((a - b) ** 2).mean()) / a.std())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kind", "plain"), [("Q4_K", Type.Q4_0), ("Q6_K", Type.Q5_0)])
def test_a_k_block_loses_less_than_the_plain_block_of_about_its_size(kind: str, plain: Type, shape: str) -> None:
    values = SHAPES[shape](np.random.default_rng(0)).astype(np.float32)
    lost = error(values, through(values, kind))
    assert lost < error(values, gguf.quants.dequantize(gguf.quants.quantize(values, plain), plain))
    assert lost < {"Q4_K": 0.12, "Q6_K": 0.06}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_what_blocks_can_hold_is_held_again(kind: str) -> None:
    """Values that came out of blocks go in and come out with next to no further loss."""
    values = np.random.default_rng(1).normal(size=(16, 256)).astype(np.float32)
    once = through(values, kind)
    assert error(once, through(once, kind)) < error(values, once) / 4


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros_and_do_not_touch_their_neighbours(kind: str) -> None:
    values = np.random.default_rng(2).normal(size=(3, 256)).astype(np.float32)
    alone = through(values[[0, 2]], kind)
    values[1] = 0
    both = through(values, kind)
    assert not both[1].any()
    assert np.array_equal(both[[0, 2]], alone)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.floats(-100, 100, width=32), min_size=256, max_size=256),
    scale=st.sampled_from([1e-3, 1.0, 50.0]),
)
def test_no_value_moves_further_than_a_step_of_its_block(kind: str, values: list[float], scale: float) -> None:
    block = (np.array([values]) * scale).astype(np.float32)
    reach = np.abs(block).max()
    moved = np.abs(through(block, kind) - block).max()
    assert np.isfinite(moved)
    assert moved <= reach * {"Q4_K": 0.15, "Q6_K": 0.05}[kind] + 1e-4
