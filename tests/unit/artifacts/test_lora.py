import json

import pytest

from catena.artifacts.lora import LoraConfig, read_config
from catena.kit.errors import Invalid
from tests.unit.artifacts.folders import peft_config

LLAMA = {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama.modeling_llama"}


def read(**changes: object) -> LoraConfig:
    return read_config(json.dumps(peft_config(**changes)).encode(), max_rank=64, max_alpha=256)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("auto_mapping", {"base_model_class": "LlamaForCausalLM", "parent_library": "os"}),
        ("auto_mapping", LLAMA | {"base_model_class": "LlamaForSequenceClassification"}),
        ("auto_mapping", LLAMA | {"parent_library": "transformers.models.llama.modeling_llama\n"}),
        ("auto_mapping", LLAMA | {"base_model_class": ["LlamaForCausalLM"]}),
        ("auto_mapping", LLAMA | {"custom_code": "evil"}),
        ("auto_mapping", {"base_model_class": "LlamaForCausalLM"}),
        ("auto_mapping", "LlamaForCausalLM"),
        ("megatron_config", {"tensor_model_parallel_size": 1}),
        ("megatron_core", "evil_module"),
        ("layer_replication", [[0, 2], [1, 3]]),
        ("modules_to_save", ["lm_head"]),
        ("target_modules", ".*_proj"),
        ("target_modules", "all-linear"),
        ("target_modules", ["(a+)+$"]),
        ("target_modules", ["q_proj", 3]),
        ("target_modules", []),
        ("target_modules", None),
        ("target_modules", ["q_proj\n"]),
        ("target_parameters", ["experts.gate_up_proj"]),
        ("exclude_modules", "(a+)+$"),
        ("layers_pattern", "(a+)+$"),
        ("layers_to_transform", [0]),
        ("rank_pattern", {"(.*a){20}": 8}),
        ("rank_pattern", [8]),
        ("alpha_pattern", {"q_proj|k_proj": 8}),
        ("bias", "all"),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("fan_in_fan_out", 0),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "mica"),
        ("trainable_token_indices", [1, 2]),
        ("use_qalora", True),
        ("use_bdlora", {"nblocks": 2}),
        ("arrow_config", {}),
        ("alora_invocation_tokens", [1, -2]),
        ("peft_type", "IA3"),
        ("peft_type", None),
        ("task_type", "SEQ_CLS"),
        ("use_dora", "yes"),
        ("use_rslora", 1),
        ("lora_dropout", 1.5),
        ("lora_dropout", "0.1"),
        ("base_model_name_or_path", ["evil"]),
        ("revision", "x" * 2000),
        ("something_new", None),
    ],
)
def test_a_configuration_that_asks_for_more_than_lora_is_refused(key: str, value: object) -> None:
    with pytest.raises(Invalid, match=key.split("_")[0]) as caught:
        read(**{key: value})
    assert caught.value.code == "adapter_bad_config"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", 0),
        ("r", 65),
        ("r", True),
        ("r", 4.0),
        ("r", None),
        ("lora_alpha", 0),
        ("lora_alpha", -8),
        ("lora_alpha", 257),
        ("lora_alpha", "8"),
        ("rank_pattern", {"q_proj": 65}),
        ("alpha_pattern", {"q_proj": 0}),
    ],
)
def test_ranks_and_alphas_out_of_bounds_are_refused(key: str, value: object) -> None:
    with pytest.raises(Invalid) as caught:
        read(**{key: value})
    assert caught.value.code == "adapter_bad_rank"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"null",
        b"\xff",
        b'{"r": NaN}',
        b'{"r": 1e999}',
        b'{"r": 4, "r": 8}',
        b'{"a":' * 100_000,
        b"1" * 10_000,
        b'{"r":' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_not_strict_json_is_refused(raw: bytes) -> None:
    with pytest.raises(Invalid) as caught:
        read_config(raw, max_rank=64, max_alpha=64)
    assert caught.value.code == "adapter_bad_config"


def test_a_folder_that_names_no_task_but_a_causal_base_is_read_as_one_that_names_it() -> None:
    assert read(task_type=None, auto_mapping=LLAMA) == read()


def test_patterns_are_matched_as_peft_matches_them() -> None:
    config = read(
        rank_pattern={"^model.layers.0.q_proj": 2, "layers.0.q_proj": 3, "q_proj": 5},
        alpha_pattern={"q_proj": 7, "layers.0.q_proj": 9},
    )
    assert [
        config.rank_of(m) for m in ("model.layers.0.q_proj", "x.model.layers.0.q_proj", "model.layers.1.q_proj")
    ] == [2, 3, 5]
    assert config.rank_of("model.layers.1.xq_proj") == 4
    assert config.alpha_of("model.layers.0.q_proj") == 7


def test_keys_that_older_versions_leave_out_may_be_absent() -> None:
    raw = json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}).encode()
    config = read_config(raw, max_rank=64, max_alpha=64)
    assert (config.rank_of("a.q_proj"), config.scale_of("a.q_proj"), config.targets_module("a.k_proj")) == (
        8,
        2.0,
        False,
    )


def test_tokens_that_activate_an_adapter_are_read() -> None:
    assert read(alora_invocation_tokens=[5, 6]).invocation == (5, 6)
    for bad in ([], ["a"], [1.0], "text"):
        with pytest.raises(Invalid, match="alora_invocation_tokens"):
            read(alora_invocation_tokens=bad)
    with pytest.raises(Invalid, match="use_dora"):
        read(alora_invocation_tokens=[5], use_dora=True)
