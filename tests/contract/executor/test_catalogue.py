"""The catalogue as other rooms see it: what is configured, put, served, and cannot be called."""

from pathlib import Path

import pytest

from catena.api.adapters.v1 import adapters_pb2
from catena.api.executor.v1 import executor_pb2 as pb
from catena.kit.config import ModelConfig
from catena.kit.errors import Denied, Unavailable
from catena.kit.serve import Caller, as_caller
from catena.plan.build import sequential
from tests.contract.executor.rooms import around, finished, house_at, request


async def test_the_catalogue_is_seeded_changed_hot_and_lists_adapters(tmp_path: Path) -> None:
    async with around(tmp_path) as room:
        room.adapters.adapters.append(
            adapters_pb2.Adapter(name="code", version="1.0.0", base="large", aliases=["stable"], status="active")
        )
        found = {model.name: model for model in (await room.stub.ListModels(pb.ListModelsRequest())).models}
        assert found["large@code"].parent == "large"
        assert found["large@code:1.0.0"].price_output == 40
        assert found["large"].context_tokens == 512
        cheap = pb.Model(name="cheap", provider="openai", price_input=0.1, base_url="http://127.0.0.1:9/v1")
        with pytest.raises(Denied):
            await room.stub.PutModel(pb.PutModelRequest(model=cheap))
        with as_caller(Caller(role="admin")):
            await room.stub.PutModel(pb.PutModelRequest(model=cheap))
            dear = pb.Model(name="large", price_input=99.0)
            await room.stub.PutModel(pb.PutModelRequest(model=dear))
        end = await finished(room.stub.Run(request(sequential("large"))))
        assert end.cost_usd == pytest.approx(10 * 99 / 1e6)
    async with around(tmp_path) as room:
        found = {model.name: model for model in (await room.stub.ListModels(pb.ListModelsRequest())).models}
    assert found["large"].price_input == 99, "a change outlives the restart while the configuration stays as it was"
    assert found["large"].calls == 1
    assert "cheap" in found


async def test_a_model_that_cannot_be_called_is_listed_with_the_reason_and_told_by_its_provider(tmp_path: Path) -> None:
    outside = [
        ModelConfig(name="gpt", provider="openai", base_url="http://127.0.0.1:9/v1", api_key_env="NO_SUCH_KEY"),
        ModelConfig(name="keyless", provider="openai"),
        ModelConfig(name="odd", provider="carrier-pigeon"),
        ModelConfig(name="free", provider="openai", base_url="http://127.0.0.1:9/v1"),
    ]
    async with around(tmp_path, house=house_at(tmp_path, models=outside)) as room:
        room.adapters.bases += [adapters_pb2.Base(name="large", problem="no folder at large; correct it")]
        room.adapters.adapters.append(
            adapters_pb2.Adapter(name="code", version="1", base="large", status="active", signer="default")
        )
        for tenant in ("shared", "default"):
            with as_caller(Caller(tenant)):
                listed = (await room.stub.ListModels(pb.ListModelsRequest())).models
            found = {model.name: model.problem for model in listed if model.problem}
            assert found == {
                "large": "no folder at large; correct it",
                **({"large@code:1": "no folder at large; correct it"} if tenant == "default" else {}),
                "small": "no base 'small' in the adapters room; name it under `models`",
                "gpt": "gpt needs a key and NO_SUCH_KEY is not set; set it and start again",
                "keyless": "keyless names no key for OpenAI; set its api_key_env, or the base_url of another server",
                "odd": "no provider 'carrier-pigeon' for 'odd'; "
                "use one of anthropic, gemini, huggingface, local, openai, tgi",
            }
        with pytest.raises(Unavailable, match="gpt needs a key and NO_SUCH_KEY is not set"):
            await finished(room.stub.Run(request(sequential("gpt"))))


async def test_a_base_lists_the_context_it_has_where_the_configuration_names_none(tmp_path: Path) -> None:
    async with around(tmp_path) as room:
        room.adapters.bases += [adapters_pb2.Base(name=name, context_tokens=1024) for name in ("small", "large")]
        room.adapters.adapters.append(adapters_pb2.Adapter(name="code", version="1", base="small", status="active"))
        listed = (await room.stub.ListModels(pb.ListModelsRequest())).models
    found = {model.name: model.context_tokens for model in listed if model.type == "chat"}
    assert found == {"small": 1024, "small@code:1": 1024, "large": 512}
