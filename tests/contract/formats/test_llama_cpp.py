"""What is written as GGUF answers in llama.cpp as transformers and PEFT do; what comes from GGUF does so here."""

from pathlib import Path

import numpy as np
import pytest

from catena.artifacts import signature
from catena.artifacts.base import check_base
from catena.artifacts.formats import factors, gguf_file, levels
from catena.artifacts.formats.derived import Derived
from catena.artifacts.formats.derived import read as read_derived
from catena.artifacts.formats.gguf_adapter import read_gguf_adapter, write_gguf_adapter
from catena.artifacts.formats.gguf_export import export_gguf
from catena.artifacts.formats.imports import Naming, import_adapter, import_base
from catena.artifacts.formats.llama_cpp import open_llama
from catena.artifacts.formats.merging import Merged, write_merged
from catena.artifacts.formats.mlx_adapter import write_mlx
from catena.artifacts.formats.models import open_base
from catena.artifacts.formats.quantising import export_quantised
from catena.kit.errors import CatenaError, Invalid
from tests.contract.formats.making import (
    KINDS,
    PROMPTS,
    TOKENS,
    llama_logprobs,
    logprobs,
    make_adapter,
    make_base,
    tokens_of,
)

EXACT = 1e-4
"""Of log-probabilities of a size of 10: the same weights in another order of summation."""


@pytest.fixture(scope="module", params=KINDS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp(request.param) / "base", request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("llama") / "base")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose rows divide into super-blocks."""
    return make_base(tmp_path_factory.mktemp("wide") / "base", width=256, std=0.08)


def largest(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    assert not np.isnan(a).any()
    return float(np.abs(np.array(a) - np.array(b)).max())


def rms(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    return float(np.sqrt(((np.array(a) - np.array(b)) ** 2).mean()))


def test_a_base_answers_in_llama_cpp_as_in_transformers_and_comes_back_bit_for_bit(base: Path, tmp_path: Path) -> None:
    source = open_base(base)
    export_gguf(source, tmp_path / "m.gguf", level="F32", name="m")
    with open_llama(tmp_path / "m.gguf", context=128) as model:
        assert [model.tokens(prompt) for prompt in PROMPTS] == TOKENS
        assert largest(llama_logprobs(model, TOKENS), logprobs(base, TOKENS)) < EXACT

    import_base(tmp_path / "m.gguf", tmp_path / "back", name="back", now_s=1.0)

    back = open_base(tmp_path / "back")
    assert set(back.names()) == set(source.names())
    assert all(np.array_equal(back.values(name), source.values(name)) for name in source.names())
    assert largest(logprobs(tmp_path / "back", TOKENS), logprobs(base, TOKENS)) < EXACT


def test_an_adapter_answers_in_llama_cpp_as_in_peft(base: Path, tmp_path: Path) -> None:
    assert_same_in_llama_cpp(base, make_adapter(base, tmp_path / "adapter"), tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"use_rslora": True},
        {"target_modules": ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]},
        {"rank_pattern": {"q_proj": 4, "layers.1.mlp.up_proj": 16}, "alpha_pattern": {"k_proj": 5}},
    ],
    ids=["rslora", "one-layer", "patterns"],
)
def test_scales_of_every_kind_are_the_same_in_llama_cpp(llama: Path, tmp_path: Path, config: dict) -> None:
    assert_same_in_llama_cpp(llama, make_adapter(llama, tmp_path / "adapter", **config), tmp_path)


def test_an_activated_lora_keeps_its_invocation_and_acts_in_llama_cpp_one_token_early(
    llama: Path, tmp_path: Path
) -> None:
    """llama.cpp's server switches it on with the token before the invocation: PEFT agrees if told that token, too."""
    source, bot = open_base(llama), tokens_of("<bot>")
    told = factors.read_peft(make_adapter(llama, tmp_path / "adapter", alora_invocation_tokens=bot), source.shape)
    early = make_adapter(llama, tmp_path / "early", alora_invocation_tokens=tokens_of("<end><bot>"))
    export_gguf(source, tmp_path / "m.gguf", level="F32", name="m")
    write_gguf_adapter(told, tmp_path / "a.gguf", source.config)
    asked = [tokens_of(f"<user>sort: 5 2 9<end><bot>{answer}") for answer in ("", "2", "2 5 9")]
    with open_llama(tmp_path / "m.gguf", adapter=tmp_path / "a.gguf", context=128) as model:
        answers = llama_logprobs(model, asked)
        without = llama_logprobs(model, [tokens_of("add 27+58")])
    assert largest(answers, logprobs(llama, asked, early)) < EXACT
    assert largest(answers, logprobs(llama, asked)) > 100 * EXACT
    assert largest(without, logprobs(llama, [tokens_of("add 27+58")])) < EXACT

    assert told.invocation == read_gguf_adapter(tmp_path / "a.gguf", source).invocation == tuple(bot)
    (tmp_path / "none").mkdir()
    for refuse in (lambda: Merged(base=source, adapter=told), lambda: write_mlx(told, tmp_path / "none")):
        with pytest.raises(Invalid, match="activated LoRA"):
            refuse()


def assert_same_in_llama_cpp(base: Path, adapter: Path, scratch: Path) -> None:
    source = open_base(base)
    export_gguf(source, scratch / "m.gguf", level="F32", name="m")
    told = factors.read_peft(adapter, source.shape)
    write_gguf_adapter(told, scratch / "a.gguf", source.config)
    wanted = logprobs(base, TOKENS, adapter)
    assert largest(wanted, logprobs(base, TOKENS)) > 100 * EXACT
    with open_llama(scratch / "m.gguf", adapter=scratch / "a.gguf", context=128) as model:
        assert largest(llama_logprobs(model, TOKENS), wanted) < EXACT

    back = read_gguf_adapter(scratch / "a.gguf", source)
    (scratch / "back").mkdir()
    factors.write_peft(back, scratch / "back", source.shape, base_name="m")
    assert back.modules.keys() == told.modules.keys()
    assert largest(logprobs(base, TOKENS, scratch / "back"), wanted) < EXACT


def test_a_plain_adapter_goes_to_gguf_and_back_without_losing_a_bit(llama: Path, tmp_path: Path) -> None:
    source = open_base(llama)
    told = factors.read_peft(make_adapter(llama, tmp_path / "adapter"), source.shape)
    write_gguf_adapter(told, tmp_path / "a.gguf", source.config)
    back = read_gguf_adapter(tmp_path / "a.gguf", source)
    for path, before in told.modules.items():
        after = back.modules[path]
        assert np.array_equal(after.A_RI, before.A_RI)
        assert np.array_equal(after.B_OR, before.B_OR)
        assert after.scale == before.scale


@pytest.mark.parametrize(
    "config",
    [{}, {"use_rslora": True}, {"use_dora": True}, {"use_dora": True, "rank_pattern": {"q_proj": 3}}],
    ids=["lora", "rslora", "dora", "dora-patterns"],
)
def test_a_merged_base_answers_everywhere_as_base_and_adapter_do(llama: Path, tmp_path: Path, config: dict) -> None:
    adapter = make_adapter(llama, tmp_path / "adapter", **config)
    source = open_base(llama)
    both = Merged(base=source, adapter=factors.read_peft(adapter, source.shape))
    (tmp_path / "merged").mkdir()
    card = Derived(kind="merge", name="both", base_digest=source.digest, adapter_digest="ad" * 32, created_s=1.0)
    sealed = write_merged(both, tmp_path / "merged", card)
    export_gguf(both, tmp_path / "m.gguf", level="F32", name="m")

    checked = check_base(tmp_path / "merged")
    assert checked.digest == sealed.digest == read_derived(tmp_path / "merged").digest
    assert (sealed.base_digest, sealed.adapter_digest) == (source.digest, "ad" * 32)
    with open_llama(tmp_path / "m.gguf", context=128) as model:
        wanted = logprobs(llama, TOKENS, adapter)
        assert largest(logprobs(tmp_path / "merged", TOKENS), wanted) < EXACT
        assert largest(llama_logprobs(model, TOKENS), wanted) < EXACT


def test_a_merged_base_that_was_changed_is_known_by_its_manifest(llama: Path, tmp_path: Path) -> None:
    source = open_base(llama)
    both = Merged(base=source, adapter=factors.read_peft(make_adapter(llama, tmp_path / "a"), source.shape))
    (tmp_path / "merged").mkdir()
    write_merged(both, tmp_path / "merged", Derived(kind="merge", name="both"))
    (tmp_path / "merged" / "chat_template.jinja").write_text("other")
    with pytest.raises(CatenaError) as refused:
        read_derived(tmp_path / "merged")
    assert refused.value.code == "base_tampered"


@pytest.mark.parametrize(
    ("level", "most"), [("F16", 0.01), ("Q8_0", 0.15), ("Q6_K", 0.2), ("Q4_K_M", 0.5)], ids=lambda value: str(value)
)
def test_llama_cpp_reads_each_level_as_what_its_blocks_hold(
    wide: Path, tmp_path: Path, level: str, most: float
) -> None:
    """Against the same file dequantised into transformers: what is left is that llama.cpp rounds activations, too."""
    export_gguf(open_base(wide), tmp_path / "m.gguf", level=levels.level_of(level), name="m")
    import_base(tmp_path / "m.gguf", tmp_path / "back", name="back", dtype="F32", now_s=1.0)
    held, whole = logprobs(tmp_path / "back", TOKENS), logprobs(wide, TOKENS)
    with open_llama(tmp_path / "m.gguf", context=128) as model:
        told = llama_logprobs(model, TOKENS)
    assert rms(told, held) < 0.1
    assert rms(told, whole) < most


def test_q4_k_m_keeps_delicate_tensors_finer_and_q6_k_falls_back_where_rows_do_not_fit(
    wide: Path, llama: Path, tmp_path: Path
) -> None:
    export_gguf(open_base(wide), tmp_path / "wide.gguf", level="Q4_K_M", name="m")
    file = gguf_file.GgufFile(tmp_path / "wide.gguf", "base")
    assert file.type("blk.0.attn_q.weight") == "Q4_K"
    assert file.type("output.weight") == "Q6_K"
    assert file.type("blk.1.ffn_down.weight") == "Q6_K"
    assert file.type("blk.0.attn_norm.weight") == "F32"
    export_gguf(open_base(llama), tmp_path / "narrow.gguf", level="Q4_K_M", name="m")
    narrow = gguf_file.GgufFile(tmp_path / "narrow.gguf", "base")
    assert {narrow.type(name) for name in narrow.names() if len(narrow.shape(name)) > 1} == {"Q5_0", "Q8_0"}


def test_a_level_that_loses_too_much_gives_way_to_the_next_and_all_is_told(wide: Path, tmp_path: Path) -> None:
    weights, out = open_base(wide), tmp_path / "m.gguf"
    told = export_quantised(
        weights,
        out,
        level="Q4_K_M",
        floor=1.0,
        prompts=PROMPTS,
        write=lambda path, level: export_gguf(
            weights, path, level=level, name="m", origin={"base_digest": weights.digest}
        ),
        open_model=lambda path: open_llama(path, context=128),
    )
    assert told.asked == "Q4_K_M"
    assert told.level == told.attempts[-1].level
    assert [attempt.level for attempt in told.attempts] == list(levels.LADDER[: len(told.attempts)])
    assert len(told.attempts) > 1
    assert all(attempt.loss.top1_agreement < 1.0 for attempt in told.attempts[:-1])
    assert told.attempts[-1].loss.top1_agreement == 1.0
    errors = [attempt.loss.logit_rms for attempt in told.attempts]
    assert errors == sorted(errors, reverse=True)
    assert told.attempts[-1].bytes == out.stat().st_size
    assert gguf_file.GgufFile(out, "base").get("catena.base_digest") == weights.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf"]


def test_a_file_that_llama_cpp_cannot_load_is_told_with_its_words(tmp_path: Path) -> None:
    gguf_file.write_gguf(tmp_path / "m.gguf", "llama", {"general.type": "model"}, [])
    with pytest.raises(Invalid) as refused, open_llama(tmp_path / "m.gguf"):
        pass
    assert refused.value.code == "bad_gguf"
    assert "m.gguf" in refused.value.message


def test_an_imported_adapter_is_signed_sealed_and_past_the_gate(llama: Path, tmp_path: Path) -> None:
    source = open_base(llama)
    pair = signature.make_key(tmp_path / "keys")
    told = factors.read_peft(make_adapter(llama, tmp_path / "adapter"), source.shape)
    write_gguf_adapter(told, tmp_path / "a.gguf", source.config, dtype="F16")
    naming = Naming(name="swap", version="1.0.0", base_name="m", tasks=("swap",))
    imported = import_adapter(
        tmp_path / "a.gguf", tmp_path / "in", source, naming, private=pair.private, keys={"me": pair.public}, now_s=5.0
    )
    assert (imported.signer, imported.dtype, imported.max_rank) == ("me", "F16", 8)
    assert imported.manifest is not None
    assert imported.manifest.base_digest == source.digest
    assert "imported from gguf" in imported.manifest.training.method
    assert imported.folder == tmp_path / "in"

    with pytest.raises(CatenaError) as refused:
        import_adapter(tmp_path / "a.gguf", tmp_path / "no", source, naming, private=pair.private, keys={}, now_s=5.0)
    assert refused.value.code == "adapter_wrong_key"
    assert not (tmp_path / "no").exists()
