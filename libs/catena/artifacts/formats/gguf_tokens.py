"""A tokenizer as GGUF metadata: byte-level BPE as llama.cpp's `gpt2`, SentencePiece's BPE as its `llama`.

llama.cpp knows a fixed list of rules by which text is cut before merging, each under a name. A tokenizer whose rule is
not among them is refused by name, since the same text would become other tokens there.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import TokenType

from catena.artifacts.formats.models import Config
from catena.artifacts.refusal import refused
from catena.artifacts.strict_json import read_object
from catena.kit.errors import Invalid

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
RULES = {
    "llama-bpe": CONTRACTIONS + r"\p{N}{1,3}" + REST,
    "qwen2": CONTRACTIONS + r"\p{N}" + REST,
    "tekken": rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}"
    + REST.replace(r"[\r\n]*|", r"[\r\n/]*|", 1),
}
"""llama.cpp's names for rules of cutting text, by their regular expression in `tokenizer.json`."""
WHOLE_WORDS_FIRST = frozenset({"llama-bpe", "tekken"})
"""Rules with which a word that is a token is taken as it is, whatever the merges say."""
BYTE = re.compile(r"<0x[0-9A-F]{2}>\Z")
NEVER = -1e6
"""Score of a token that no merge makes."""
SPACE = "\u2581"


def token_metadata(folder: Path, config: Config) -> dict[str, Any]:
    """The `tokenizer.*` fields for a base's folder.

    Raises Invalid (`unsupported_tokenizer`) for what llama.cpp cannot express, Refused when there is no tokenizer.
    """
    tree = _read(folder, "tokenizer.json", needed=True)
    settings = _read(folder, "tokenizer_config.json", needed=False)
    model = tree.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise _cannot(f"model {model.get('type') if isinstance(model, dict) else model!r}")
    texts, types = _tokens(tree, model, config)
    made = {"tokenizer.ggml.tokens": texts, "tokenizer.ggml.token_type": types}
    made |= _sentencepiece(tree, model, texts) if model.get("byte_fallback") else _byte_level(tree, model)
    ids = {text: number for number, text in enumerate(texts)}
    return made | _specials(tree, settings, config, ids) | _template(folder, settings)


def _tokens(tree: Mapping[str, Any], model: Mapping[str, Any], config: Config) -> tuple[list[str], list[int]]:
    """Texts and types by id, filled up to the rows of the embedding."""
    texts = [f"[PAD{number}]" for number in range(config.vocab_size)]
    types = [int(TokenType.UNUSED)] * config.vocab_size
    added = {entry["id"]: entry for entry in tree.get("added_tokens", [])}
    by_id = {number: text for text, number in model["vocab"].items()}
    by_id |= {number: entry["content"] for number, entry in added.items()}
    if max(by_id, default=0) >= config.vocab_size:
        raise _cannot(f"token {max(by_id)}, beyond the {config.vocab_size} rows of the embedding")
    for number, text in by_id.items():
        texts[number] = text
        if number in added:
            types[number] = int(TokenType.CONTROL if added[number]["special"] else TokenType.USER_DEFINED)
        elif model.get("byte_fallback") and BYTE.match(text):
            types[number] = int(TokenType.BYTE)
        else:
            types[number] = int(TokenType.NORMAL)
        if text == model.get("unk_token"):
            types[number] = int(TokenType.UNKNOWN)
    return texts, types


def _byte_level(tree: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    steps = _steps(tree.get("pre_tokenizer"), "pretokenizers")
    levels = [step for step in steps if step.get("type") == "ByteLevel"]
    if len(levels) != 1 or levels[0].get("add_prefix_space"):
        raise _cannot("a pre-tokenizer that is no plain byte level")
    normal = (tree.get("normalizer") or {}).get("type")
    pairs = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    if not pairs:
        # Every byte is a token whatever the rule. llama.cpp wants one merge; this one can never apply, since no text
        # is cut into symbols of several letters before a merge has made one.
        return _gpt2("gpt-2", ["[PAD] [PAD]"])
    rule = _rule(steps, levels[0])
    if normal not in (None, "NFC") or (normal == "NFC") != (rule == "qwen2"):
        raise _cannot(f"normalizer {normal!r} with rule {rule!r}")
    if bool(model.get("ignore_merges")) != (rule in WHOLE_WORDS_FIRST):
        raise _cannot(f"ignore_merges {model.get('ignore_merges')!r} with rule {rule!r}")
    return _gpt2(rule, [" ".join(pair) for pair in pairs])


def _gpt2(rule: str, merges: list[str]) -> dict[str, Any]:
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": rule, "tokenizer.ggml.merges": merges}


def _rule(steps: list[dict[str, Any]], level: Mapping[str, Any]) -> str:
    others = [step for step in steps if step.get("type") != "ByteLevel"]
    regex = level.get("use_regex", True)
    if not others and regex:
        return "gpt-2"
    if len(others) == 1 and regex and others[0].get("type") == "Digits" and others[0].get("individual_digits"):
        return "smollm"
    if len(others) == 1 and not regex and others[0].get("type") == "Split" and not others[0].get("invert"):
        pattern = others[0].get("pattern", {}).get("Regex")
        for name, known in RULES.items():
            if pattern == known and others[0].get("behavior") in ("Isolated", "isolated"):
                return name
        raise _cannot(f"a rule that cuts text by {str(pattern)[:120]!r}; known are {', '.join(RULES)}")
    raise _cannot(f"pre-tokenizers {', '.join(str(step.get('type')) for step in steps)}")


def _sentencepiece(tree: Mapping[str, Any], model: Mapping[str, Any], texts: list[str]) -> dict[str, Any]:
    """Scores that order merges as the list does; llama.cpp joins any two symbols whose whole is a token."""
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    score: dict[str, float] = {}
    last = ""
    for rank, (left, right) in enumerate(merges):
        whole = left + right
        if whole != last and whole in score:
            raise _cannot(f"merges not ordered by token ({whole!r} comes twice), so not SentencePiece's")
        score.setdefault(whole, -float(rank))
        last = whole
    known, vocabulary = set(merges), model["vocab"]
    for text in vocabulary.keys() & score.keys():
        for at in range(1, len(text)):
            pair = (text[:at], text[at:])
            if pair not in known and pair[0] in vocabulary and pair[1] in vocabulary:
                raise _cannot(f"no merge of {pair[0]!r} and {pair[1]!r}, so not SentencePiece's")
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": [score.get(text, NEVER) for text in texts],
        "tokenizer.ggml.add_space_prefix": _prefixed(tree),
    }


def _prefixed(tree: Mapping[str, Any]) -> bool:
    """Whether a space is put before the text. Raises Invalid for any other treatment of spaces."""
    normal = _steps(tree.get("normalizer"), "normalizers")
    before = _steps(tree.get("pre_tokenizer"), "pretokenizers")
    replaced = normal[-1] if normal else {}
    marked = replaced.get("pattern") == {"String": " "} and replaced.get("content") == SPACE
    if not before and marked and [step.get("type") for step in normal[:-1]] in (["Prepend"], []):
        return len(normal) == 2
    if not normal and [step.get("type") for step in before] == ["Metaspace"] and not before[0].get("split", True):
        return before[0].get("prepend_scheme") != "never"
    kinds = ", ".join(str(step.get("type")) for step in [*normal, *before])
    raise _cannot(f"spaces treated by {kinds or 'nothing'}")


def _specials(
    tree: Mapping[str, Any], settings: Mapping[str, Any], config: Config, ids: Mapping[str, int]
) -> dict[str, Any]:
    """Ids of the tokens with a role, and which of them frame a text."""
    ends = config.eos_token_id
    fallback = {
        "bos": config.bos_token_id,
        "eos": ends[0] if isinstance(ends, list) else ends,
        "padding": config.pad_token_id,
        "unknown": None,
    }
    made: dict[str, Any] = {}
    for role, key in (("bos", "bos"), ("eos", "eos"), ("padding", "pad"), ("unknown", "unk")):
        told = settings.get(f"{key}_token")
        told = told.get("content") if isinstance(told, dict) else told
        number = ids.get(told, fallback[role]) if isinstance(told, str) else fallback[role]
        if number is not None:
            made[f"tokenizer.ggml.{role}_token_id"] = number
    frame = [
        ["SpecialToken" in piece for piece in step["single"]]
        for step in _steps(tree.get("post_processor"), "processors")
        if step.get("type") == "TemplateProcessing" and step.get("single")
    ]
    for key, at in (("add_bos_token", 0), ("add_eos_token", -1)):
        made[f"tokenizer.ggml.{key}"] = bool(settings.get(key, bool(frame) and frame[0][at]))
    return made


def _template(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    path = folder / "chat_template.jinja"
    template = path.read_text() if path.is_file() else settings.get("chat_template")
    if not isinstance(template, str):
        return {}
    # Marks for training only, which other readers of templates do not know.
    opened = re.sub(r"\{%(-?)\s*generation\s*(-?)%\}", r"{%\1 if true \2%}", template)
    return {"tokenizer.chat_template": re.sub(r"\{%(-?)\s*endgeneration\s*(-?)%\}", r"{%\1 endif \2%}", opened)}


def _steps(tree: Any, inner: str) -> list[dict[str, Any]]:
    if not isinstance(tree, dict):
        return []
    return list(tree[inner]) if tree.get("type") == "Sequence" else [tree]


def _read(folder: Path, name: str, *, needed: bool) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        if needed:
            raise refused("base", "missing_file", f"{folder.name} has no {name}; save its tokenizer with transformers")
        return {}
    return read_object(path.read_bytes(), name, "base", "bad_config")


def _cannot(what: str) -> Exception:
    message = f"llama.cpp cannot express this tokenizer: {what}; serve the base as it is"
    return Invalid(message, code="unsupported_tokenizer")
