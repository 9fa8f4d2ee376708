from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from catena.adapters.drivers.engine.adapter_weights import read_adapter
from catena.adapters.drivers.engine.base_weights import read_base
from catena.adapters.drivers.engine.decoder import Decoder, Segment, Step
from catena.adapters.drivers.engine.linear import Linear
from catena.adapters.drivers.engine.lora import Adapter
from tests.contract.adapters.making import CONTEXT, FAMILIES, make_adapter, make_base, part_of, peft_logits, prompts
from tests.contract.adapters.ways import MEANS, Make

CPU = torch.device("cpu")
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(params=MEANS)
def make(request: pytest.FixtureRequest) -> Make:
    """Each of the ways in which a device may compute; all are the same to who asks."""
    return MEANS[request.param]


def opened(base: Path) -> Decoder:
    return read_base(base, dtype="auto", device=CPU, kv_bytes=1 << 30)


class Runner:
    """Feeds packed steps by hand, so that every row's logits can be seen."""

    def __init__(self, decoder: Decoder, make: Make) -> None:
        self.means = make(decoder)

    def run(self, feeds: list[list[int]], starts: list[int], adapters: list[Adapter | None]) -> list[torch.Tensor]:
        """Logits of every fed token, row by row; rows with one token must come first."""
        self.means.kv.fit([min(CONTEXT, self.means.decoder.shape.context)] * len(feeds))
        tokens = [token for feed in feeds for token in feed]
        positions = [start + i for feed, start in zip(feeds, starts, strict=True) for i in range(len(feed))]
        slots = [slot for slot, feed in enumerate(feeds) for _ in feed]
        singles = sum(len(feed) == 1 for feed in feeds)
        segments, at = [], singles
        for slot in range(singles, len(feeds)):
            segments.append(Segment(at, at + len(feeds[slot]), slot, starts[slot]))
            at += len(feeds[slot])
        span = max(positions[:singles], default=-1) + 1
        step = Step(
            tokens_T=torch.tensor(tokens),
            positions_T=torch.tensor(positions),
            slots_T=torch.tensor(slots),
            singles=singles,
            span=span,
            segments=segments,
            wanted_W=None,
        )
        rows = [adapter for feed, adapter in zip(feeds, adapters, strict=True) for _ in feed]
        logits = self.means.forward(step, rows)
        return list(logits.split([len(feed) for feed in feeds]))


def assert_close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert (got - wanted).abs().max() <= TOLERANCE * wanted.abs().max()


CONFIGS: list[dict[str, Any]] = [
    {"r": 1},
    {"r": 2, "target_modules": ["q_proj", "v_proj"]},
    {"r": 4, "use_rslora": True},
    {"r": 8},
    {"r": 16, "rank_pattern": {"q_proj": 3, "layers.1.mlp.down_proj": 24}, "alpha_pattern": {"k_proj": 5}},
    {"r": 32, "lora_alpha": 64},
    {"r": 64, "use_rslora": True, "target_modules": ["gate_proj", "o_proj", "k_proj"]},
    {"r": 8, "use_dora": True},
]


def test_eight_adapters_and_base_rows_in_one_forward_equal_peft_one_by_one(
    base: Path, tmp_path: Path, make: Make
) -> None:
    folders = [make_adapter(base, tmp_path / str(i), seed=i, **config) for i, config in enumerate(CONFIGS)]
    decoder = opened(base)
    adapters: list[Adapter | None] = [
        read_adapter(f"a{i}", [part_of(base, folder)], decoder) for i, folder in enumerate(folders)
    ]
    adapters += [None, None]
    texts = prompts(len(adapters))
    wanted = [peft_logits(base, folder, text) for folder, text in zip([*folders, None, None], texts, strict=True)]
    runner = Runner(decoder, make)

    # Whole prompts but for the last two tokens, then one token a row: both kinds of step, all rows in each.
    first = runner.run([text[:-2] for text in texts], [0] * len(texts), adapters)
    for at in (2, 1):
        starts = [len(text) - at for text in texts]
        last = runner.run([[text[-at]] for text in texts], starts, adapters)
        first = [torch.cat(pair) for pair in zip(first, last, strict=True)]

    for got, right in zip(first, wanted, strict=True):
        assert_close(got, right)


@pytest.mark.parametrize("rows", [["a"], ["a", "a", "a"], ["a", None, "a"], ["a", "b", "a", "b", None]])
def test_every_way_of_applying_adapters_gives_the_same(
    base: Path, tmp_path: Path, rows: list[str | None], make: Make
) -> None:
    folders = {name: make_adapter(base, tmp_path / name, seed=ord(name)) for name in "ab"}
    decoder = opened(base)
    held = {name: read_adapter(name, [part_of(base, folder)], decoder) for name, folder in folders.items()}
    texts = prompts(len(rows), shortest=4)
    adapters = [held[name] if name else None for name in rows]
    runner = Runner(decoder, make)
    runner.run([text[:-1] for text in texts], [0] * len(texts), adapters)

    got = runner.run([[text[-1]] for text in texts], [len(text) - 1 for text in texts], adapters)

    for name, text, row in zip(rows, texts, got, strict=True):
        assert_close(row[-1], peft_logits(base, folders[name] if name else None, text)[-1])


def test_new_weights_under_a_known_key_replace_the_old(base: Path, tmp_path: Path, make: Make) -> None:
    old, new = (make_adapter(base, tmp_path / str(seed), seed=seed) for seed in (5, 6))
    decoder = opened(base)
    runner, text = Runner(decoder, make), prompts(1, 6)[0]
    runner.run([text], [0], [read_adapter("same", [part_of(base, old)], decoder)])

    got = runner.run([text], [0], [read_adapter("same", [part_of(base, new)], decoder)])

    assert_close(got[0], peft_logits(base, new, text))


def test_a_composition_adds_the_weighted_changes(base: Path, tmp_path: Path, make: Make) -> None:
    folders = [make_adapter(base, tmp_path / str(r), seed=r, r=r) for r in (4, 16)]
    decoder = opened(base)
    text = prompts(1, 9)[0]
    both = read_adapter("both", [part_of(base, f, w) for f, w in zip(folders, (0.7, 0.3), strict=True)], decoder)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    for folder, weight in zip(folders, (0.7, 0.3), strict=True):
        part = part_of(base, folder)
        from safetensors.torch import load_file

        tensors = load_file(folder / "adapter_model.safetensors")
        for module in part.modules:
            a, b = (tensors[f"base_model.model.{module.path}.lora_{x}.weight"] for x in "AB")
            model.get_submodule(module.path).weight.data += weight * module.scale * (b @ a)
    with torch.no_grad():
        wanted = model(torch.tensor([text])).logits[0]

    got = Runner(decoder, make).run([text], [0], [both])

    assert_close(got[0], wanted)


def test_bytes_are_those_of_the_factors(base: Path, tmp_path: Path) -> None:
    part = part_of(base, make_adapter(base, tmp_path, r=4, target_modules=["q_proj", "down_proj"]))

    adapter = read_adapter("a", [part], opened(base))

    assert adapter.bytes == 2 * 4 * ((64 + 64) + (128 + 64)) * 4


@pytest.mark.parametrize("kind", FAMILIES)
def test_bases_of_every_family_and_their_adapters_equal_transformers_and_peft(
    tmp_path: Path, kind: str, make: Make
) -> None:
    base = make_base(tmp_path / "base", kind=kind)
    fused = {"target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]} if kind.startswith("phi") else {}
    folder = make_adapter(base, tmp_path / "adapter", **fused)
    decoder = opened(base)
    adapter = read_adapter("a", [part_of(base, folder)], decoder)
    text = prompts(1, 24)[0]
    runner = Runner(decoder, make)
    chunks = [
        runner.run([text[at:stop]] * 2, [at, at], [adapter, None])
        for at, stop in ((0, 12), (12, 20), *((n, n + 1) for n in range(20, len(text))))
    ]

    for row, wanted in enumerate((folder, None)):
        assert_close(torch.cat([chunk[row] for chunk in chunks]), peft_logits(base, wanted, text))


def test_wide_layers_whose_factors_are_kept_apart_equal_peft(tmp_path: Path, make: Make) -> None:
    base = make_base(tmp_path / "base", width=512, layers=1)
    folders = [make_adapter(base, tmp_path / str(r), seed=r, r=r) for r in (16, 64)]
    folders.append(make_adapter(base, tmp_path / "few", r=64, target_modules=["v_proj", "up_proj", "down_proj"]))
    decoder = opened(base)
    adapters = [read_adapter(str(n), [part_of(base, folder)], decoder) for n, folder in enumerate(folders)]
    text = prompts(1, 9)[0]

    got = Runner(decoder, make).run([text] * 4, [0] * 4, [*adapters, None])

    for row, folder in zip(got, [*folders, None], strict=True):
        assert_close(row, peft_logits(base, folder, text))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_products_equal_plain_ones(dtype: str) -> None:
    torch.manual_seed(0)
    weight_OI, bias_O, x_TI = (torch.randn(*size).to(getattr(torch, dtype)) for size in ((70, 33), (70,), (5, 33)))
    linear = Linear(weight_OI, bias_O)
    wanted = torch.nn.functional.linear(x_TI, weight_OI, bias_O)
    assert torch.allclose(linear(x_TI), wanted, rtol=1e-5 if dtype == "float32" else 1e-2, atol=1e-4)
    assert torch.equal(linear.weight(), weight_OI)
    assert linear.bytes == (70 * 33 + 70) * weight_OI.element_size()
