"""Providers of other packages: really installed beside the house, with an entry point, and asked over gRPC."""

import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from catena.api.executor.v1 import executor_pb2 as pb
from catena.executor.handlers.values import plain, to_value
from catena.kit.config import ModelConfig, PriceConfig
from catena.kit.errors import Unavailable
from catena.plan.build import sequential
from tests.contract.executor.rooms import around, finished, house_at, request

PACKAGE = "house_of_others"
CODE = """
    from catena.executor.core.chat import Delta, Usage
    from catena.executor.core.ports import Ended, Piece, Prediction, Vectors


    class Echo:
        async def generate(self, ask):
            for word in ask.request.messages[-1].content.split():
                yield Piece(deltas=(Delta(index=0, text=word[::-1]),))
            yield Piece(
                deltas=(Delta(index=0, finish_reason="stop"),),
                ended=Ended(usage=Usage(input_tokens=3, output_tokens=2), resolved_model=ask.model.upstream_name),
            )

        async def embed(self, model, texts, timeout_s, *, truncate=False):
            return Vectors(vectors=[[float(len(text))] for text in texts], usage=None)

        async def predict(self, model, inputs, parameters, timeout_s):
            return Prediction(values=[{"label": text.upper()} for text in inputs], usage=None)


    def broken():
        raise RuntimeError("this one cannot be made")
"""
ENTRIES = f"""
    [catena.providers]
    echo = {PACKAGE}:Echo
    broken = {PACKAGE}:broken
    absent = {PACKAGE}_that_is_not_there:Echo
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package as pip leaves it behind: a module and its metadata, on the path."""
    site = tmp_path / "site"
    metadata = site / f"{PACKAGE}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / f"{PACKAGE}.py").write_text(dedent(CODE))
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(dedent(ENTRIES))
    monkeypatch.syspath_prepend(str(site))
    yield
    sys.modules.pop(PACKAGE, None)


def model(name: str, provider: str = "echo", **more: Any) -> ModelConfig:
    return ModelConfig(name=name, provider=provider, upstream_name="real", **more)


async def test_a_package_of_others_brings_providers_and_one_that_fails_keeps_nobody_out(
    tmp_path: Path, installed: None
) -> None:
    models = [
        model("far", price=PriceConfig(input=2.0, output=5.0)),
        model("vectors", type="embedding"),
        model("mood", type="classification"),
        model("lost", "broken"),
    ]
    async with around(tmp_path, house=house_at(tmp_path, models=models)) as room:
        end = await finished(room.stub.Run(request(sequential("far"), "one two", stream=True)))
        assert end.choices[0].message.content == "enoowt"
        assert end.cost_usd == pytest.approx((3 * 2 + 2 * 5) / 1e6)
        assert end.stages[0].resolved_model == "real"

        vectors = await room.stub.Embed(pb.EmbedRequest(model="vectors", texts=["a", "bcd"]))
        assert [list(one.values) for one in vectors.vectors] == [[1.0], [3.0]]
        mood = await room.stub.Predict(pb.PredictRequest(model_id="mood", data=to_value("glad")))
        assert plain(mood.result) == {"label": "GLAD"}

        listed = {one.name: one.problem for one in (await room.stub.ListModels(pb.ListModelsRequest())).models}
        assert listed["far"] == ""
        assert listed["lost"].startswith("no provider 'broken' for 'lost'; use one of")
        with pytest.raises(Unavailable):
            await finished(room.stub.Run(request(sequential("lost"))))
