"""What is asked of encoders wrongly, and which kind a model is of."""

import pytest

from catena.adapters.core.encoding import Encoding, check_encoding
from catena.adapters.drivers.bases import kind_of
from catena.kit.errors import Invalid


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (Encoding(base="e"), "empty_input"),
        (Encoding(base="e", texts=("",)), "empty_input"),
        (Encoding(base="e", rows=((),)), "empty_input"),
        (Encoding(base="e", texts=("a",) * 2049), "too_many"),
        (Encoding(base="e", texts=("a", "b"), pairs=("c",)), "bad_pairs"),
        (Encoding(base="e", rows=((float("nan"),),)), "bad_features"),
        (Encoding(base="e", rows=({"a": float("inf")},)), "bad_features"),
    ],
)
def test_what_means_nothing_is_refused(asked: Encoding, code: str) -> None:
    with pytest.raises(Invalid) as refused:
        check_encoding(asked)
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("architecture", "model_type", "staged", "kind"),
    [
        ("LlamaForCausalLM", "llama", False, "chat"),
        ("BertModel", "bert", False, "embedding"),
        ("Qwen3ForCausalLM", "qwen3", True, "embedding"),
        ("DebertaV2ForSequenceClassification", "deberta-v2", False, "classification"),
        ("ModernBertForTokenClassification", "modernbert", False, "token-classification"),
        ("mlp", "features", False, "prediction"),
    ],
)
def test_a_models_configuration_tells_its_kind(architecture: str, model_type: str, staged: bool, kind: str) -> None:
    assert kind_of(architecture, model_type, staged=staged) == kind
