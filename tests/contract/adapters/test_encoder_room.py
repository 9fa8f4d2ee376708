"""Encoders beside decoders in the whole room: one gate, one list, clear words for the wrong question."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from peft import LoraConfig, get_peft_model
from transformers import AutoModel

from catena.api.adapters.v1 import adapters_pb2 as pb
from catena.api.types.v1 import types_pb2 as types
from catena.artifacts.signature import sign
from catena.kit.config import House, ModelConfig
from catena.kit.errors import CatenaError
from tests.contract.adapters.conftest import MODELS, Room, new_house, open_room
from tests.contract.adapters.making import seal
from tests.contract.adapters.making_encoders import make_encoder, make_mlp, make_sentence_encoder

pytestmark = pytest.mark.asyncio(loop_scope="module")


def furnish(home: Path) -> House:
    """A house with a decoder, one model of each other kind, and some that cannot be."""
    house = new_house(home)
    made = house.folder("made")
    make_encoder(made / "mood", "bert", "classification")
    make_encoder(made / "names", "distilbert", "token-classification")
    make_sentence_encoder(made / "vectors")
    make_mlp(made / "taste")
    make_encoder(made / "pickled", "bert", "classification")
    (made / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    make_encoder(made / "tampered", "bert", "classification")
    sign(made / "tampered", house.folder("keys") / "trainer.pem", "base")
    config = made / "tampered" / "config.json"
    config.write_text(config.read_text().replace('"good"', '"fine"'))
    sign(made / "vectors", house.folder("keys") / "trainer.pem", "base")
    models = [
        ModelConfig(name="demo-small", path=str(MODELS / "demo-small")),
        ModelConfig(name="mood", path=str(made / "mood"), type="classification"),
        ModelConfig(name="names", path=str(made / "names"), type="token-classification"),
        ModelConfig(name="vectors", path=str(made / "vectors"), type="embedding"),
        ModelConfig(name="taste", path=str(made / "taste"), type="prediction"),
        ModelConfig(name="untold", path=str(made / "mood")),
        ModelConfig(name="pickled", path=str(made / "pickled"), type="classification"),
        ModelConfig(name="tampered", path=str(made / "tampered"), type="classification"),
    ]
    return msgspec.structs.replace(house, models=models)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def room(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Room]:
    async with open_room(furnish(tmp_path_factory.mktemp("room"))) as opened:
        yield opened


async def refusal(room: Room, method: str, request: object) -> CatenaError:
    with pytest.raises(CatenaError) as refused:
        await room.ask(method, request)
    return refused.value


async def test_every_kind_answers_under_its_digest_and_is_listed_with_it(room: Room) -> None:
    labelled = await room.ask("Classify", pb.ClassifyRequest(model="mood", texts=["the cat", "Anna"], top=2))
    spans = await room.ask("Classify", pb.ClassifyRequest(model="names", texts=["the cat, Anna in Paris"]))
    vectors = await room.ask("Encode", pb.EncodeRequest(model="vectors", texts=["the cat", "cat " * 99], truncate=True))
    rows = [pb.FeatureVector(values=[1, 2, 3]), pb.FeatureVector(named={"f0": 1, "f1": 2, "f2": 3})]
    predicted = await room.ask("Predict", pb.PredictRequest(model="taste", rows=rows, top=1))

    assert [len(one.labels) for one in labelled.results] == [2, 2]
    assert labelled.usage.input_tokens == 4 + 3
    for span in spans.results[0].spans:
        assert span.text == "the cat, Anna in Paris"[span.start : span.end]
    assert [sum(value**2 for value in one.values) for one in vectors.vectors] == pytest.approx([1, 1], abs=1e-5)
    assert (vectors.truncated, vectors.usage.input_tokens) == (1, 4 + 24)
    assert predicted.results[0] == predicted.results[1]
    assert len(predicted.results[0].labels) == 1

    listed = {base.name: base for base in (await room.ask("ListBases", pb.ListBasesRequest())).bases}
    assert {name: base.kind for name, base in listed.items()} == {
        "demo-small": "chat", "mood": "classification", "names": "token-classification", "vectors": "embedding",
        "taste": "prediction", "untold": "chat", "pickled": "classification", "tampered": "classification",
    }  # fmt: skip
    for model, answer in (("mood", labelled), ("vectors", vectors), ("taste", predicted)):
        assert listed[model].resident
        assert listed[model].bytes > 0
        assert answer.resolved_model == f"{model}#{listed[model].digest}"
    assert (listed["mood"].context_tokens, listed["vectors"].context_tokens) == (64, 24)


@pytest.mark.parametrize(
    ("method", "request_", "code", "told"),
    [
        ("Encode", pb.EncodeRequest(model="mood", texts=["a"]), "wrong_model_type", "labels texts"),
        ("Encode", pb.EncodeRequest(model="demo-small", texts=["a"]), "wrong_model_type", "generates text"),
        ("Classify", pb.ClassifyRequest(model="taste", texts=["a"]), "wrong_model_type", "reads feature vectors"),
        ("Classify", pb.ClassifyRequest(model="mood", texts=["cat " * 99]), "context_length_exceeded", "truncate"),
        ("Classify", pb.ClassifyRequest(model="mood", texts=["a"], aggregation="best"), "bad_aggregation", "simple"),
        ("Classify", pb.ClassifyRequest(model="mood@x", texts=["a"]), "bad_model_name", "take no adapters"),
        ("Classify", pb.ClassifyRequest(model="nobody", texts=["a"]), "unknown_model", "mood"),
        ("Classify", pb.ClassifyRequest(model="untold", texts=["a"]), "wrong_model_type", "set models.type"),
        ("Classify", pb.ClassifyRequest(model="pickled", texts=["a"]), "base_unsafe_file", "pytorch_model.bin"),
        ("Classify", pb.ClassifyRequest(model="tampered", texts=["a"]), "base_tampered", "trainer signed"),
        ("Predict", pb.PredictRequest(model="taste", rows=[pb.FeatureVector(values=[1])]), "bad_features", "f0, f1"),
        ("Predict", pb.PredictRequest(model="mood", rows=[pb.FeatureVector(values=[1])]), "wrong_model_type", "mood"),
    ],
)
async def test_the_wrong_question_is_answered_with_what_to_do(
    room: Room, method: str, request_: object, code: str, told: str
) -> None:
    refused = await refusal(room, method, request_)
    assert refused.code == code
    assert told in refused.message


async def test_a_model_that_does_not_generate_says_so(room: Room) -> None:
    hello = types.ChatRequest(messages=[types.ChatMessage(role="user", content="hello")])
    with pytest.raises(CatenaError) as refused:
        await room.stream(pb.GenerateRequest(model="mood", request=hello))
    assert refused.value.code == "wrong_model_type"
    assert "name a base of type chat" in refused.value.message


async def test_an_adapter_for_an_encoder_is_refused_by_name(room: Room) -> None:
    base = room.house.folder("made") / "mood"
    adapter = room.house.folder("made") / "tuned"
    peft = get_peft_model(AutoModel.from_pretrained(base), LoraConfig(target_modules=["query", "value"]))
    peft.save_pretrained(adapter)
    (adapter / "README.md").unlink()
    seal(adapter, base, name="tuned", version="1", base_name="mood")
    sign(adapter, room.house.folder("keys") / "trainer.pem")
    refused = await refusal(room, "RegisterAdapter", pb.RegisterAdapterRequest(path=str(adapter)))
    assert refused.code == "encoder_adapters_unsupported"
    assert "merge it into the base" in refused.message


async def test_an_encoder_is_loaded_ahead_like_any_base(room: Room) -> None:
    first = await room.ask("Load", pb.LoadRequest(model="names"))
    again = await room.ask("Load", pb.LoadRequest(model="names"))
    assert first.bytes == again.bytes > 0
    assert again.duration_ms == 0


async def test_a_decoder_goes_on_writing_while_texts_are_labelled(room: Room) -> None:
    asked = types.ChatRequest(
        messages=[types.ChatMessage(role="user", content="reverse: stone")],
        sampling=types.Sampling(max_tokens=40, temperature=0.0),
    )
    generate = pb.GenerateRequest(model="demo-small", request=asked)
    alone = await room.stream(generate)
    began = time.monotonic()
    classify = pb.ClassifyRequest(model="mood", texts=["the cat sat on a mat"] * 512)
    labelled, answers = await asyncio.gather(room.ask("Classify", classify), room.stream(generate))
    assert len(labelled.results) == 512
    assert "".join(d.text for a in answers for d in a.deltas) == "".join(d.text for a in alone for d in a.deltas)
    assert answers[-1].done.first_token_ms < 1000 * (time.monotonic() - began)


async def test_encoders_count_in_the_byte_budget_of_bases(tmp_path: Path) -> None:
    async with open_room(furnish(tmp_path / "home"), base_budget_bytes=120_000) as room:
        for model in ("mood", "names", "mood"):
            answer = await room.ask("Classify", pb.ClassifyRequest(model=model, texts=["the cat"]))
            assert answer.resolved_model.startswith(model)
            listed = await room.ask("ListBases", pb.ListBasesRequest())
            assert [base.name for base in listed.bases if base.resident] == [model]
            assert 0 < listed.used_bytes <= 120_000
