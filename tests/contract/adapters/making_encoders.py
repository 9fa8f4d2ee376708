"""Small random encoders and models of feature vectors, made by transformers itself."""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    RobertaConfig,
    XLMRobertaConfig,
)

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["the", "cat", "sat", "on", "a", "mat", "in", "paris", "with", "anna", "and", "her", "two", "black", "dogs"]
VOCABULARY = [*MARKS, *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS, *"0123456789.,!?'-"]
ENTITIES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
CONTEXT = 64
FAMILIES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "bert": (BertConfig, {}),
    "distilbert": (DistilBertConfig, {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}),
    "roberta": (RobertaConfig, {"type_vocab_size": 1}),
    "xlm-roberta": (XLMRobertaConfig, {"type_vocab_size": 1}),
    "deberta-v2": (
        DebertaV2Config,
        {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    ),
    "qwen2": (Qwen2Config, {"num_key_value_heads": 2}),
    "modernbert": (
        ModernBertConfig,
        {"global_attn_every_n_layers": 2, "local_attention": 16, "classifier_pooling": "mean", "eos_token_id": 3,
         "bos_token_id": 2, "cls_token_id": 2, "sep_token_id": 3},
    ),
}  # fmt: skip
HEADS: Mapping[str, Any] = {
    "embedding": AutoModel,
    "classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
}


def make_encoder(folder: Path, family: str, kind: str, *, seed: int = 0, **more: Any) -> Path:
    """A random encoder with the head that `kind` needs, saved by transformers."""
    torch.manual_seed(seed)
    config, own = FAMILIES[family]
    labels = more.pop("labels", ENTITIES if kind == "token-classification" else ["bad", "good", "so-so"])
    sizes = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        # RoBERTa counts positions from after that of padding.
        "max_position_embeddings": CONTEXT + (1 if "roberta" in family else 0),
        "initializer_range": 0.6,
        "pad_token_id": 0,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    if family == "distilbert":
        sizes = {name: size for name, size in sizes.items() if name not in SIZES}
    model = HEADS[kind].from_config(config(**sizes | own | more))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


SIZES = frozenset({"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"})


def make_sentence_encoder(folder: Path, *, normalised: bool = True, modes: Sequence[str] = ("mean_tokens",)) -> Path:
    """An encoder with the files that sentence-transformers writes beside it."""
    make_encoder(folder, "bert", "embedding")
    stages = ["Transformer", "Pooling", "Normalize"] if normalised else ["Transformer", "Pooling"]
    told = [
        {"idx": place, "name": str(place), "path": f"{place}_{stage}" if place else "",
         "type": f"sentence_transformers.models.{stage}"}
        for place, stage in enumerate(stages)
    ]  # fmt: skip
    for stage in told[1:]:
        (folder / stage["path"]).mkdir()
    pooling = {"word_embedding_dimension": 32} | {f"pooling_mode_{mode}": True for mode in modes}
    write(folder / "1_Pooling" / "config.json", pooling)
    write(folder / "modules.json", told)
    write(folder / "sentence_bert_config.json", {"max_seq_length": 24, "do_lower_case": False})
    return folder


def make_mlp(folder: Path, sizes: Sequence[int] = (3, 8, 4), **more: Any) -> Path:
    """A random network over the features `f0`, `f1`, ..."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    config = {
        "model_type": "features",
        "architectures": ["mlp"],
        "inputs": [f"f{place}" for place in range(sizes[0])],
        "outputs": [f"item-{place}" for place in range(sizes[-1])],
    }
    write(folder / "config.json", config | more)
    tensors = {"mean": rng.normal(size=sizes[0]), "scale": rng.uniform(0.5, 2.0, sizes[0])}
    for place, (inside, outside) in enumerate(pairwise(sizes)):
        tensors[f"layers.{place}.weight"] = rng.normal(size=(outside, inside))
        tensors[f"layers.{place}.bias"] = rng.normal(size=outside)
    save_file({name: tensor.astype("float32") for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def tokenizer() -> PreTrainedTokenizerFast:
    """WordPiece over letters and a few words."""
    made = Tokenizer(models.WordPiece({word: number for number, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), MARKS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=CONTEXT, **names)


def write(path: Path, tree: Any) -> None:
    path.write_text(json.dumps(tree))
