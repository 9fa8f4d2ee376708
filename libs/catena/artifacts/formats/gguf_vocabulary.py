"""A GGUF file's tokenizer as transformers reads one: what undoes `gguf_tokens`, for files of whatever origin."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from gguf import TokenType

from catena.artifacts.formats.gguf_file import GgufFile
from catena.artifacts.formats.gguf_tokens import RULES, SPACE, WHOLE_WORDS_FIRST
from catena.artifacts.refusal import refused
from catena.kit.errors import Invalid

ROLES = {"bos": "bos", "eos": "eos", "padding": "pad", "unknown": "unk"}
PLAIN = ("gpt-2", "default", "smollm")


def write_tokenizer(file: GgufFile, folder: Path, *, context: int) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and the chat template.

    Raises Invalid (`unsupported_tokenizer`) for kinds that `tokenizer.json` is not written for here.
    """
    texts = file.need("tokenizer.ggml.tokens")
    types = file.get("tokenizer.ggml.token_type", [int(TokenType.NORMAL)] * len(texts))
    if len(types) != len(texts) or len(set(texts)) != len(texts):
        raise refused("base", "bad_header", f"{file.path.name}: {len(texts)} tokens are not told apart; convert anew")
    kind = file.need("tokenizer.ggml.model")
    if kind == "gpt2":
        tree = _byte_level(file, texts, types)
    elif kind == "llama":
        tree = _sentencepiece(file, texts, types)
    else:
        raise _cannot(file, f"of kind {kind!r}; gpt2 and llama are known")
    told = {int(number): text for number, text in enumerate(texts)}
    ids = {ours: file.get(f"tokenizer.ggml.{theirs}_token_id") for theirs, ours in ROLES.items()}
    named = {f"{role}_token": told[number] for role, number in ids.items() if number in told}
    tree["added_tokens"] = [
        _added(number, text, special=types[number] != TokenType.USER_DEFINED)
        for number, text in told.items()
        if types[number] in (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
    ]
    tree["post_processor"] = _frame(file, told)
    _put(folder / "tokenizer.json", tree)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context}
    _put(folder / "tokenizer_config.json", settings | {"clean_up_tokenization_spaces": False} | named)
    template = file.get("tokenizer.chat_template")
    if isinstance(template, str):
        (folder / "chat_template.jinja").write_text(template)


def _byte_level(file: GgufFile, texts: Sequence[str], types: Sequence[int]) -> dict[str, Any]:
    rule = file.get("tokenizer.ggml.pre", "default")
    level: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    before: dict[str, Any] = level
    if rule in RULES:
        cut = {"type": "Split", "pattern": {"Regex": RULES[rule]}, "behavior": "Isolated", "invert": False}
        before = {"type": "Sequence", "pretokenizers": [cut, level | {"use_regex": False}]}
    elif rule == "smollm":
        before = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, level]}
    elif rule not in PLAIN:
        raise _cannot(file, f"that cuts text by {rule!r}; known are {', '.join([*PLAIN, *RULES])}")
    vocabulary = _vocabulary(texts, types)
    pairs = [tuple(merge.split(" ", 1)) for merge in file.get("tokenizer.ggml.merges", [])]
    # A merge of something that is no token does nothing in llama.cpp; here it would be refused.
    merges = [pair for pair in pairs if len(pair) == 2 and {*pair, "".join(pair)} <= vocabulary.keys()]
    return {
        "version": "1.0",
        "normalizer": {"type": "NFC"} if rule == "qwen2" else None,
        "pre_tokenizer": before,
        "decoder": level,
        "model": _bpe(vocabulary, merges) | {"ignore_merges": rule in WHOLE_WORDS_FIRST},
    }


def _sentencepiece(file: GgufFile, texts: Sequence[str], types: Sequence[int]) -> dict[str, Any]:
    scores = file.need("tokenizer.ggml.scores")
    vocabulary = _vocabulary(texts, types)
    found = [
        (-scores[number], number, at, (text[:at], text[at:]))
        for text, number in vocabulary.items()
        if types[number] == TokenType.NORMAL
        for at in range(1, len(text))
        if text[:at] in vocabulary and text[at:] in vocabulary
    ]
    unknown = next((text for text, kind in zip(texts, types, strict=True) if kind == TokenType.UNKNOWN), None)
    space = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prefix = file.get("tokenizer.ggml.add_space_prefix", True)
    steps = [{"type": "Prepend", "prepend": SPACE}, space] if prefix else [space]
    back = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []),
    ]
    bpe = _bpe(vocabulary, [pair for *_, pair in sorted(found)])
    return {
        "version": "1.0",
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": back},
        "model": bpe | {"byte_fallback": True, "fuse_unk": True, "unk_token": unknown},
    }


def _vocabulary(texts: Sequence[str], types: Sequence[int]) -> dict[str, int]:
    return {text: number for number, text in enumerate(texts) if types[number] != TokenType.UNUSED}


def _bpe(vocabulary: dict[str, int], merges: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    return {"type": "BPE", "vocab": vocabulary, "merges": merges, "byte_fallback": False, "ignore_merges": False}


def _frame(file: GgufFile, told: dict[int, str]) -> dict[str, Any] | None:
    """What is put around a text: the tokens of beginning and end, where the file says so."""
    pieces: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    framed: dict[str, Any] = {}
    for role, at in (("bos", 0), ("eos", len(pieces) + 1)):
        number = file.get(f"tokenizer.ggml.{role}_token_id")
        if number in told and file.get(f"tokenizer.ggml.add_{role}_token", False):
            pieces.insert(at, {"SpecialToken": {"id": told[number], "type_id": 0}})
            framed[told[number]] = {"id": told[number], "ids": [number], "tokens": [told[number]]}
    if not framed:
        return None
    pair = [*pieces, {"Sequence": {"id": "B", "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": pieces, "pair": pair, "special_tokens": framed}


def _added(number: int, text: str, *, special: bool) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": text, "special": special} | plain


def _put(path: Path, tree: dict[str, Any]) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(tree)))


def _cannot(file: GgufFile, what: str) -> Invalid:
    message = f"{file.path.name} has a tokenizer {what}; import the model from its own repository instead"
    return Invalid(message, code="unsupported_tokenizer")
