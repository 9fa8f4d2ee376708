"""The same text becomes the same tokens in llama.cpp, in both directions, or the tokenizer is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from catena.artifacts.formats.gguf_export import export_gguf
from catena.artifacts.formats.gguf_tokens import RULES, token_metadata
from catena.artifacts.formats.imports import import_base
from catena.artifacts.formats.llama_cpp import open_llama
from catena.artifacts.formats.models import open_base, read_config
from catena.kit.errors import Invalid

VOCABULARY = 600
CORPUS = [
    "The quick brown fox jumps over the lazy dog; it isn't there's theirs, 1234567 times 89.",
    "def merge(left, right):\n    return left + right\n\n\nprint('hello world')",
    "Größe und Straße, café, naïve, 日本語 text, \U0001f600 emoji",
    "aaa aaaa aaaaa bbb   ccc\t\tddd 2024-01-02 3.14159 HELLO World hElLo",
] * 20
TEXTS = [
    "Hello, world! It's 12345 o'clock",
    "  two  spaces\n\n and\ttabs ",
    "Straße 日本 \U0001f600 naïve",
    "isn't THEY'LL we've",
    "x",
    "<bot>the lazy<end>dog",
]
SPECIAL = ["<pad>", "<bos>", "<end>", "<bot>"]


def byte_level(rule: str, *, bos: bool) -> Tokenizer:
    made = Tokenizer(models.BPE(ignore_merges=rule in ("llama-bpe", "tekken")))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule not in RULES)
    if rule in RULES:
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(RULES[rule]), "isolated"), level])
    elif rule == "smollm":
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level])
    else:
        made.pre_tokenizer = level
    made.normalizer = normalizers.NFC() if rule == "qwen2" else None
    made.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=letters)
    made.train_from_iterator(CORPUS, trainer)
    if bos:
        made.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return made


def sentencepiece() -> Tokenizer:
    """As SentencePiece's BPE is carried to `tokenizer.json`: every way to join two tokens to one, best score first."""
    learnt = Tokenizer(models.BPE(unk_token="<unk>"))
    learnt.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    pieces = ["<unk>", "<bos>", "<end>", "<pad>", "<bot>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=pieces, max_token_length=12)
    learnt.train_from_iterator([word for text in CORPUS for word in text.split(" ")], trainer)
    tree = json.loads(learnt.to_str())["model"]
    vocabulary = tree["vocab"]
    by_id = sorted(vocabulary, key=vocabulary.get)
    pairs = [
        (text[:at], text[at:])
        for text in by_id
        if text not in pieces
        for at in range(1, len(text))
        if {text[:at], text[at:]} <= vocabulary.keys()
    ]
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = learnt.normalizer
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["<unk>", "<bos>", "<end>", "<pad>", "<bot>"])
    made.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", made.token_to_id("<bos>"))]
    )
    return made


def base_with(tokenizer: Tokenizer, folder: Path) -> Path:
    ids = {f"{role}_token_id": tokenizer.token_to_id(f"<{text}>") for role, text in NAMES.items()}
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY + 40,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 256,
    }
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes | ids)).save_pretrained(folder)
    named = {f"{role}_token": f"<{text}>" for role, text in NAMES.items()}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    return folder


NAMES = {"bos": "bos", "eos": "end", "pad": "pad"}


@pytest.mark.parametrize("rule", ["gpt-2", "smollm", *RULES, "sentencepiece"])
def test_llama_cpp_cuts_text_as_the_tokenizer_does_and_so_does_what_comes_back(rule: str, tmp_path: Path) -> None:
    made = sentencepiece() if rule == "sentencepiece" else byte_level(rule, bos=rule == "llama-bpe")
    base = base_with(made, tmp_path / "base")
    wanted = [made.encode(text).ids for text in TEXTS]
    assert sum(len(ids) for ids in wanted) < sum(len(text.encode()) for text in TEXTS)
    export_gguf(open_base(base), tmp_path / "m.gguf", level="F16", name="m")
    with open_llama(tmp_path / "m.gguf", context=64) as model:
        assert [model.tokens(text) for text in TEXTS] == wanted

    import_base(tmp_path / "m.gguf", tmp_path / "back", name="back", now_s=1.0)
    back = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert [back(text).input_ids for text in TEXTS] == wanted
    assert (back.bos_token, back.eos_token, back.pad_token) == ("<bos>", "<end>", "<pad>")
    assert back.decode(wanted[0], skip_special_tokens=True) == made.decode(wanted[0])


def test_what_llama_cpp_cannot_express_is_refused_by_name(tmp_path: Path) -> None:
    base = base_with(byte_level("gpt-2", bos=False), tmp_path / "base")
    config, path = read_config(base), base / "tokenizer.json"
    whole = json.loads(path.read_text())
    odd = {"type": "Split", "pattern": {"Regex": r"\d{2}"}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    for change, named in (
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [odd, level]}}, r"\d{2}"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "no plain byte level"),
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"model": whole["model"] | {"type": "Unigram"}}, "Unigram"),
        ({"model": whole["model"] | {"byte_fallback": True}}, "so not SentencePiece's"),
        ({"model": whole["model"] | {"ignore_merges": True}}, "ignore_merges"),
    ):
        path.write_text(json.dumps(whole | change))
        with pytest.raises(Invalid) as refused:
            token_metadata(base, config)
        assert refused.value.code == "unsupported_tokenizer"
        assert named in refused.value.message.replace("\\\\", "\\")
