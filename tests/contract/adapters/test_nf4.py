"""Bases in four bits; transformers with bitsandbytes' own linear layers is the reference."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from catena.adapters.config import EngineConfig
from catena.adapters.drivers.engine import nf4
from catena.adapters.drivers.engine.adapter_weights import read_adapter
from catena.adapters.drivers.engine.base_weights import read_base, weight_bytes
from catena.adapters.drivers.engine.decoder import Decoder
from catena.adapters.drivers.engine.linear import Linear
from catena.adapters.drivers.engine.lora import Adapter
from catena.adapters.drivers.engine.probe import probe
from catena.api.adapters.v1 import adapters_pb2 as pb
from catena.kit.config import House
from catena.kit.errors import Invalid
from tests.contract.adapters.conftest import new_adapter, open_room
from tests.contract.adapters.making import make_adapter, make_base, part_of, peft_logits, prompts
from tests.contract.adapters.test_engine_equals_peft import Runner
from tests.contract.adapters.test_room import question, register, text_of
from tests.contract.adapters.ways import MEANS

CPU = torch.device("cpu")
TOLERANCE = {"float32": 2e-2, "bfloat16": 1e-1}
"""Of the largest logit: both sides multiply in bfloat16, but not in the same order."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def opened(base: Path, dtype: str = "float32", *, quantised: bool = True) -> Decoder:
    return read_base(base, dtype=dtype, device=CPU, kv_bytes=1 << 30, nf4=quantised)


def bitsandbytes_logits(base: Path, adapter: Path | None, tokens: list[int], dtype: str) -> torch.Tensor:
    kind = getattr(torch, dtype)
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=kind
    )
    model: Any = AutoModelForCausalLM.from_pretrained(base, quantization_config=config, dtype=kind, device_map="cpu")
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(torch.tensor([tokens]), use_cache=False).logits[0]
    return logits.float()


CONFIGS: list[dict[str, Any]] = [
    {"r": 4},
    {"r": 32, "use_rslora": True, "target_modules": ["q_proj", "down_proj"]},
    {"r": 8, "use_dora": True},
]


def mixed(decoder: Decoder, base: Path, folders: list[Path | None], texts: list[list[int]]) -> list[torch.Tensor]:
    """Logits of a batch of all of them, the last token as a step of its own."""
    adapters: list[Adapter | None] = [
        read_adapter(str(n), [part_of(base, folder)], decoder) if folder else None for n, folder in enumerate(folders)
    ]
    runner = Runner(decoder, MEANS["bags-rows"])
    first = runner.run([text[:-1] for text in texts], [0] * len(texts), adapters)
    last = runner.run([[text[-1]] for text in texts], [len(text) - 1 for text in texts], adapters)
    return [torch.cat(pair) for pair in zip(first, last, strict=True)]


def apart(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_base_in_four_bits_with_mixed_adapters_equals_bitsandbytes_own(tmp_path: Path, kind: str, dtype: str) -> None:
    base = make_base(tmp_path / "base", kind=kind, width=128)
    # PEFT's DoRA reads bitsandbytes' layout for CPUs as if it were the plain one: it is held to the other test.
    folders = [make_adapter(base, tmp_path / str(n), seed=n, **config) for n, config in enumerate(CONFIGS[:2])]
    asked, texts = [*folders, None], prompts(3, shortest=6)

    got = mixed(opened(base, dtype), base, asked, texts)

    wanted = [bitsandbytes_logits(base, folder, text, dtype) for folder, text in zip(asked, texts, strict=True)]
    assert max(map(apart, got, wanted)) <= TOLERANCE[dtype]
    plain = mixed(opened(base, dtype, quantised=False), base, asked, texts)
    assert min(map(apart, plain, wanted)) > TOLERANCE[dtype]


@pytest.mark.parametrize(("fused", "tolerance"), [(False, 1e-4), (True, 5e-2)], ids=["unpacked", "as it is"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_it_equals_peft_on_the_quantised_weights_exactly_where_they_are_unpacked(
    tmp_path: Path, kind: str, fused: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fused:
        monkeypatch.setattr(nf4, "fuses", lambda: False)
    base = make_base(tmp_path / "base", kind=kind, width=128)
    folders = [make_adapter(base, tmp_path / str(n), seed=n, **config) for n, config in enumerate(CONFIGS)]
    asked, texts = [*folders, None], prompts(4, shortest=6)

    got = mixed(opened(base), base, asked, texts)

    quantised = as_quantised(base, tmp_path / "quantised")
    wanted = [peft_logits(quantised, folder, text) for folder, text in zip(asked, texts, strict=True)]
    assert max(map(apart, got, wanted)) <= tolerance


def as_quantised(base: Path, folder: Path) -> Path:
    """The base with the values that its linear layers have in four bits."""
    functional = nf4.library().functional
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            made = functional.quantize_4bit(layer.weight.data, quant_type="nf4", compress_statistics=True)
            layer.weight.data = functional.dequantize_4bit(*made)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "sizes", [((96, 128),), ((64, 128), (32, 128)), ((70, 128),), ((96, 80),), ((33, 48), (20, 48))]
)
def test_products_are_those_of_the_quantised_weights_for_every_shape(sizes: tuple[tuple[int, int], ...]) -> None:
    functional = nf4.library().functional
    torch.manual_seed(0)
    weights = [torch.randn(size) for size in sizes]
    made = [functional.quantize_4bit(w, quant_type="nf4", compress_statistics=True) for w in weights]
    dense_OI = torch.cat([functional.dequantize_4bit(*each) for each in made])
    bias_O, x_TI = torch.randn(dense_OI.shape[0]), torch.randn(5, dense_OI.shape[1])

    linear = Linear(nf4.Nf4(weights), bias_O)

    wanted = x_TI @ dense_OI.T + bias_O
    assert (linear.outputs, linear.inputs) == tuple(dense_OI.shape)
    assert (linear(x_TI) - wanted).abs().max() <= 1e-2 * wanted.abs().max()
    assert (linear.weight() - dense_OI).abs().max() <= 1e-2 * dense_OI.abs().max()


def test_bytes_are_those_held_and_ends_stay_as_they_are(tmp_path: Path) -> None:
    base = make_base(tmp_path, kind="qwen2", width=256)
    whole, small = opened(base, quantised=False), opened(base)

    weights = sum(site.outputs * site.inputs for layer in whole.layers for site in layer.sites)
    biases = sum(4 * site.bias_O.numel() for layer in whole.layers for site in layer.sites if site.bias_O is not None)
    held = sum(site.bytes for layer in small.layers for site in layer.sites)
    # Four bits a weight, a scale for 64 of them in one byte or two, and what unpacks them.
    assert weights * (0.5 + 1 / 64) <= held - biases <= weights * (0.5 + 2 / 64) + 8 * 2000
    assert weight_bytes(whole) - weight_bytes(small) == 4 * weights + biases - held
    assert torch.equal(small.ends.head.weight(), whole.ends.head.weight())
    assert torch.equal(small.ends.embed_VD, whole.ends.embed_VD)


def test_the_probe_holds_for_adapters_of_a_base_in_four_bits(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    decoder = opened(base)
    probe(decoder, read_adapter("a", [part_of(base, make_adapter(base, tmp_path / "a"))], decoder))


def test_without_the_library_the_cure_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_base(tmp_path)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)

    with pytest.raises(Invalid, match="pip install bitsandbytes") as caught:
        opened(base)

    assert caught.value.code == "no_bitsandbytes"


def test_a_folder_that_was_saved_quantised_is_refused_by_name(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", width=128)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model: Any = AutoModelForCausalLM.from_pretrained(base, quantization_config=config, device_map="cpu")
    model.save_pretrained(tmp_path / "saved")

    with pytest.raises(Invalid, match=r"saved quantised by bitsandbytes.*adapters\.quantization") as caught:
        opened(tmp_path / "saved")

    assert caught.value.code == "base_quantised"


async def test_a_base_in_four_bits_answers_with_adapters_and_says_what_it_holds(house: House) -> None:
    async with open_room(house, quantization={"demo-large": "nf4"}) as room:
        await register(room, new_adapter(house, "shout"))
        plain = await room.stream(question("demo-large"))
        shouted = await room.stream(question("demo-large@shout:1"))
        await room.ask("Load", pb.LoadRequest(model="demo-small"))

        large, small = (await room.ask("ListBases", pb.ListBasesRequest())).bases

    assert text_of(plain)
    assert text_of(shouted) != text_of(plain)
    assert (large.dtype, small.dtype) == ("nf4", "float32")
    assert large.bytes < 2 * large.parameters
    assert small.bytes >= 4 * small.parameters


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"quantization": {"nobody": "nf4"}}, "names nobody; the bases are demo-small, demo-large"),
        (
            {"quantization": {"demo-large": "nf4"}, "engine": EngineConfig(kind="vllm", url="http://127.0.0.1:1")},
            "start the vllm server with a quantisation",
        ),
    ],
)
async def test_a_quantisation_that_would_not_be_done_is_refused(
    house: House, config: dict[str, Any], told: str
) -> None:
    with pytest.raises(Invalid, match=told):
        async with open_room(house, **config):
            pass
