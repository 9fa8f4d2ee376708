"""Encoders and models of feature vectors in the real worker; transformers' own pipelines are the reference."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from transformers import AutoModel, AutoTokenizer, pipeline

from catena.adapters.core.encoding import Encoded, Encoding, Found
from catena.adapters.core.work import BaseSource, Weights
from catena.adapters.drivers.engine.client import ProcessEngine, open_engine
from catena.adapters.drivers.engine.frames import Settings
from catena.kit.config import ModelType
from catena.kit.errors import Exhausted, Invalid, Unavailable
from tests.contract.adapters.making_encoders import (
    CONTEXT,
    FAMILIES,
    make_encoder,
    make_mlp,
    make_sentence_encoder,
    write,
)

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore:Tokenizer does not support real words"),
]
TEXTS = (
    "Anna sat in Paris.",
    "x",
    "the two black dogs and her cat sat on a mat with Anna!",
    "Paris, Paris - and the Orinoco",
)
LONG = "cat " * 200
NEAR = 1e-5


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ProcessEngine]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("encoders")
    settings = Settings(socket=str(folder / "line.sock"), encode_tokens=48, encode_queue=64)
    async with open_engine(settings, folder / "run") as opened:
        yield opened


async def load(engine: ProcessEngine, folder: Path, kind: ModelType, **more: Any) -> str:
    name = folder.name
    await engine.load_base(BaseSource(name=name, folder=str(folder), kind=kind, **more))
    return name


async def read(engine: ProcessEngine, base: str, *texts: str, **more: Any) -> tuple[Found, ...]:
    return (await engine.encode(Encoding(base=base, texts=texts or TEXTS, **more))).found


def vector(found: Found) -> np.ndarray[Any, Any]:
    return np.frombuffer(found.vector, "<f4")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "more", [{}, {"problem_type": "multi_label_classification"}, {"labels": ["worth"], "problem_type": "regression"}]
)
async def test_labels_are_those_of_transformers(
    engine: ProcessEngine, tmp_path: Path, family: str, more: dict[str, Any]
) -> None:
    folder = make_encoder(tmp_path / f"{family}-{len(more)}-labels", family, "classification", **more)
    base = await load(engine, folder, "classification")
    reference = pipeline("text-classification", model=str(folder), top_k=None)
    for found, text in zip(await read(engine, base), TEXTS, strict=True):
        want = reference([text])[0]
        assert [label.name for label in found.labels] == [one["label"] for one in want]
        assert [label.score for label in found.labels] == pytest.approx([one["score"] for one in want], abs=NEAR)


async def test_pairs_are_read_together(engine: ProcessEngine, tmp_path: Path) -> None:
    folder = make_encoder(tmp_path / "pairs", "bert", "classification", labels=["fits"])
    base = await load(engine, folder, "classification")
    reference = pipeline("text-classification", model=str(folder))
    pairs = tuple(reversed(TEXTS))
    found = await read(engine, base, pairs=pairs)
    want = [reference({"text": a, "text_pair": b})["score"] for a, b in zip(TEXTS, pairs, strict=True)]
    assert [one.labels[0].score for one in found] == pytest.approx(want, abs=NEAR)


@pytest.mark.parametrize("family", FAMILIES)
async def test_spans_are_those_of_transformers(engine: ProcessEngine, tmp_path: Path, family: str) -> None:
    folder = make_encoder(tmp_path / f"{family}-spans", family, "token-classification")
    base = await load(engine, folder, "token-classification")
    many = 0
    for aggregation in ("none", "simple", "first", "average", "max"):
        reference = pipeline("token-classification", model=str(folder), aggregation_strategy=aggregation)
        for found, text in zip(await read(engine, base, aggregation=aggregation), TEXTS, strict=True):
            want = reference(text)
            told = [(span.name, span.start, span.end) for span in found.spans]
            assert told == [(one.get("entity_group") or one["entity"], one["start"], one["end"]) for one in want]
            assert [span.score for span in found.spans] == pytest.approx([one["score"] for one in want], abs=NEAR)
            many += len(told)
    assert many


@pytest.mark.parametrize("family", FAMILIES)
async def test_without_files_that_say_more_a_vector_is_the_mean_of_its_tokens(
    engine: ProcessEngine, tmp_path: Path, family: str
) -> None:
    folder = make_encoder(tmp_path / f"{family}-mean", family, "embedding")
    base = await load(engine, folder, "embedding")
    model, words = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for found, text in zip(await read(engine, base), TEXTS, strict=True):
        with torch.no_grad():
            want = model(**words(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        assert vector(found) == pytest.approx(want.numpy(), abs=NEAR)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize(
    "modes", [("mean",), ("cls",), ("max",), ("lasttoken",), ("weightedmean", "mean_sqrt_len_tokens", "cls")]
)
async def test_vectors_are_those_of_sentence_transformers(
    engine: ProcessEngine, tmp_path: Path, modes: tuple[str, ...], normalised: bool
) -> None:
    folder = tmp_path / f"st-{modes[0]}-{normalised}"
    stages = [modules.Transformer(str(make_encoder(tmp_path / "raw", "bert", "embedding")), max_seq_length=24)]
    stages += [modules.Pooling(32, pooling_mode=modes), *([modules.Normalize()] if normalised else [])]
    reference = SentenceTransformer(
        modules=stages, prompts={"query": "the cat: "}, default_prompt_name="query", device="cpu"
    )
    reference.save(str(folder))
    base = await load(engine, folder, "embedding")
    found = await read(engine, base, *TEXTS, LONG, truncate=True)
    for one, want in zip(found, reference.encode([*TEXTS, LONG]), strict=True):
        assert vector(one) == pytest.approx(want, abs=NEAR)


async def test_older_files_of_sentence_transformers_mean_the_same(engine: ProcessEngine, tmp_path: Path) -> None:
    folder = make_sentence_encoder(tmp_path / "older", modes=("cls_token", "mean_tokens"))
    base = await load(engine, folder, "embedding")
    reference = SentenceTransformer(str(folder), device="cpu")
    for one, want in zip(await read(engine, base), reference.encode(list(TEXTS)), strict=True):
        assert vector(one) == pytest.approx(want, abs=NEAR)
    with pytest.raises(Invalid, match="takes 24; shorten it or ask for it to be cut"):
        await read(engine, base, LONG)


async def test_a_text_that_is_too_long_is_refused_unless_it_may_be_cut(engine: ProcessEngine, tmp_path: Path) -> None:
    folder = make_encoder(tmp_path / "long", "roberta", "classification")
    base = await load(engine, folder, "classification")
    with pytest.raises(Invalid, match="text 1 has 202 tokens") as refused:
        await read(engine, base, "x", LONG)
    assert refused.value.code == "context_length_exceeded"
    encoded = await engine.encode(Encoding(base=base, texts=("x", LONG), truncate=True))
    cut = pipeline("text-classification", model=str(folder), top_k=None)([LONG], truncation=True, max_length=CONTEXT)[0]
    assert (encoded.tokens, encoded.truncated) == (3 + CONTEXT, 1)
    assert [label.score for label in encoded.found[1].labels] == pytest.approx([o["score"] for o in cut], abs=NEAR)


async def test_many_requests_at_once_get_each_their_own(engine: ProcessEngine, tmp_path: Path) -> None:
    base = await load(engine, make_encoder(tmp_path / "many", "bert", "classification"), "classification")
    words = "the cat sat on a mat in paris with anna and her two black dogs".split()  # noqa: SIM905
    texts = [" ".join(words[: 1 + number % len(words)]) for number in range(20)]
    alone = [(await read(engine, base, text))[0] for text in texts]
    together = await asyncio.gather(*(read(engine, base, *texts[start : start + 3]) for start in range(0, 20, 3)))
    for one, other in zip(alone, [found for some in together for found in some], strict=True):
        assert [label.name for label in one.labels] == [label.name for label in other.labels]
        assert [a.score for a in one.labels] == pytest.approx([b.score for b in other.labels], abs=NEAR)
    with pytest.raises(Exhausted) as full:
        await read(engine, base, *(["cat"] * 65))
    assert full.value.code == "queue_full"


async def test_a_feature_vector_comes_by_place_or_by_name(engine: ProcessEngine, tmp_path: Path) -> None:
    folder = make_mlp(tmp_path / "taste")
    base = await load(engine, folder, "prediction")
    rows: Any = ((0.5, -1.0, 2.0), {"f2": 2.0, "f0": 0.5, "f1": -1.0}, (9.0, 9.0, 9.0))
    found = (await engine.encode(Encoding(base=base, rows=rows))).found
    assert found[0] == found[1] != found[2]
    scores = {label.name: label.score for label in found[0].labels}
    want = reference_mlp(folder, np.array(rows[0]))
    assert [scores[f"item-{place}"] for place in range(4)] == pytest.approx(want, abs=NEAR)
    assert [label.score for label in found[0].labels] == sorted(scores.values(), reverse=True)
    for row, why in (((1.0,), "takes 3: f0, f1, f2"), ({"f0": 1.0, "f1": 1.0}, "needs feature 'f2'")):
        with pytest.raises(Invalid, match=why) as refused:
            await engine.encode(Encoding(base=base, rows=(row,)))
        assert refused.value.code == "bad_features"


def reference_mlp(folder: Path, row_I: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same network in torch."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    hidden = (torch.tensor(row_I, dtype=torch.float32) - tensors["mean"]) / tensors["scale"]
    hidden = torch.relu(torch.nn.functional.linear(hidden, tensors["layers.0.weight"], tensors["layers.0.bias"]))
    return torch.nn.functional.linear(hidden, tensors["layers.1.weight"], tensors["layers.1.bias"]).softmax(0).numpy()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"architectures": ["not-installed"]}, "unknown_plugin"),
        ({"link": "cube"}, "base_bad_config"),
        ({"outputs": ["one"]}, "base_incomplete"),
        ({"inputs": ["f0", "f1"]}, "base_incomplete"),
    ],
)
async def test_a_model_of_features_that_does_not_fit_its_description_is_refused(
    engine: ProcessEngine, tmp_path: Path, change: dict[str, Any], code: str
) -> None:
    folder = make_mlp(tmp_path / "odd")
    write(folder / "config.json", json.loads((folder / "config.json").read_text()) | change)
    with pytest.raises(Invalid) as refused:
        await load(engine, folder, "prediction")
    assert refused.value.code == code


async def test_every_tensor_has_its_place(engine: ProcessEngine, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for name, change, code in (
        ("odd", lambda tensors: tensors | {"bert.extra.weight": torch.ones(3)}, "unsupported_architecture"),
        ("short", lambda tensors: {n: t for n, t in tensors.items() if n != "classifier.weight"}, "base_incomplete"),
        (
            "small",
            lambda tensors: tensors | {"classifier.weight": torch.ones(7, 32), "classifier.bias": torch.ones(7)},
            "unsupported_architecture",
        ),
    ):
        folder = make_encoder(tmp_path / name, "bert", "classification")
        tensors = change(load_file(folder / "model.safetensors"))
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(Invalid) as refused:
            await load(engine, folder, "classification")
        assert refused.value.code == code


async def test_an_encoder_that_is_unloaded_is_gone(engine: ProcessEngine, tmp_path: Path) -> None:
    base = await load(engine, make_encoder(tmp_path / "leaving", "bert", "classification"), "classification")
    assert await engine.unload(Weights(base=base)) > 0
    with pytest.raises(Unavailable) as gone:
        await read(engine, base)
    assert gone.value.code == "not_resident"


async def test_a_plug_in_of_another_package_is_found_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "elsewhere"
    told = package / "summing-1.0.dist-info"
    told.mkdir(parents=True)
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: summing\nVersion: 1.0\n")
    (told / "entry_points.txt").write_text("[catena.models]\nsumming = summing:load\n")
    (package / "summing.py").write_text(SUMMING)
    # The worker is a process of its own and inherits where packages are.
    monkeypatch.syspath_prepend(str(package))
    monkeypatch.setenv("PYTHONPATH", str(package), prepend=":")
    folder = make_mlp(tmp_path / "sum", architectures=["summing"])
    async with open_engine(Settings(socket=str(tmp_path / "line.sock")), tmp_path / "run") as own:
        base = await load(own, folder, "prediction")
        encoded: Encoded = await own.encode(Encoding(base=base, rows=((1.0, 2.0),)))
        assert [(label.name, label.score) for label in encoded.found[0].labels] == [("sum", 3.0)]


SUMMING = """
class Summing:
    inputs, outputs = ("a", "b"), ("sum",)

    def predict(self, rows):
        return rows.sum(axis=1, keepdims=True)


def load(folder):
    assert (folder / "model.safetensors").exists()
    return Summing()
"""
