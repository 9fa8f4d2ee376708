import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from catena.adapters.core.work import Constraint
from catena.adapters.drivers.engine.grammar import KEPT, Grammar, Grammars, constrain
from catena.adapters.drivers.engine.text import Text
from catena.kit.errors import Invalid
from demo import tokenizer as bytewise


def schema(of: Any) -> Constraint:
    return Constraint(json_schema=json.dumps(of))


def by_bytes() -> Grammars:
    return Grammars(bytewise.build(64).backend_tokenizer, frozenset({bytewise.END}))


BAD = [
    (schema({"type": "nonsense"}), "bad_schema", "nonsense"),
    (schema({"not": {"type": "string"}}), "bad_schema", "not"),
    (schema({"type": "string", "pattern": "(?=a)b"}), "bad_schema", "look-ahead"),
    (schema({"type": "integer", "minimum": 5, "maximum": 3}), "bad_schema", "minimum"),
    (schema({"$ref": "https://example.com/x.json"}), "bad_schema", "example.com"),
    (Constraint(json_schema="{nonsense"), "bad_schema", "key must be a string"),
    (Constraint(json_schema="[1]"), "bad_schema", "object"),
    (Constraint(regex="a("), "bad_regex", "unclosed group"),
    (Constraint(regex=r"(a)\1"), "bad_regex", "backreferences"),
]


@pytest.mark.parametrize(("constraint", "code", "told"), BAD, ids=lambda value: str(value)[:40])
def test_what_cannot_be_compiled_is_refused_with_the_reason(constraint: Constraint, code: str, told: str) -> None:
    with pytest.raises(Invalid) as caught:
        by_bytes().compile(constraint)

    assert caught.value.code == code
    assert told in caught.value.message
    assert len(caught.value.message) < 500


def letters(tmp_path: Path, **special: str) -> Text:
    """A base's text whose vocabulary writes only a, b and c."""
    backend = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "c": 2, "<end>": 3}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(tmp_path)  # type: ignore[no-untyped-call]
    return Text(tmp_path, lambda: 0.0)


def sentence_pieces(folder: Path) -> Text:
    """A base's text as Llama 2 has it: blanks as a letter of their own, unknown bytes one by one."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "\u2581yes"]
    words += [chr(letter) for letter in range(33, 127)]
    vocabulary = {word: number for number, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(words[:3])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(folder)  # type: ignore[no-untyped-call]
    return Text(folder, lambda: 0.0)


def test_sentence_pieces_are_constrained_to_the_byte(tmp_path: Path) -> None:
    text = sentence_pieces(tmp_path)
    wanted = (" yes", "yes", "  no", "\u4e2d \u00e9")
    torch.manual_seed(0)
    met = set()
    for _ in range(60):
        grammar, stream, said = text.grammars.compile(Constraint(choices=wanted)), text.stream(exact=True), ""
        while not grammar.complete:
            logits = torch.randn(1, 400)
            constrain(logits, [(grammar, range(1), ())])
            token = int(logits.argmax())
            if token in text.ends:
                break
            for each in (token, *_after(grammar, token)):
                said += stream.push(each)
        met.add(said + stream.end())

    assert met == set(wanted)


def _after(grammar: Grammar, token: int) -> Sequence[int]:
    grammar.take(token)
    forced = grammar.forced()
    for each in forced:
        grammar.take(each)
    return forced


def test_a_vocabulary_that_cannot_write_the_answer_is_told_at_once_or_when_met(tmp_path: Path) -> None:
    grammars = letters(tmp_path, eos_token="<end>").grammars

    with pytest.raises(Invalid) as caught:
        grammars.compile(Constraint(choices=("xyz",)))
    later = grammars.compile(Constraint(choices=("abz",)))
    for token in (0, 1):
        assert later.masks(1) == [bytes([1 << token, 0, 0, 0])]
        later.take(token)

    assert later.masks(1) == []

    assert caught.value.code == "bad_choices"
    assert "cannot go on" in later.error


def test_a_base_without_an_end_is_not_constrained(tmp_path: Path) -> None:
    with pytest.raises(Invalid) as caught:
        letters(tmp_path).grammars.compile(Constraint(choices=("abc",)))

    assert caught.value.code == "constraint_unsupported"


def test_masks_follow_what_is_ahead_and_leave_the_grammar_where_it_was() -> None:
    grammar = by_bytes().compile(Constraint(regex="ab[0-9]"))
    for width in (bytewise.VOCABULARY, bytewise.VOCABULARY + 90):
        logits = torch.zeros(8, width)

        constrain(
            logits,
            [
                (grammar, range(1, 5), [ord("a"), ord("b"), ord("x")]),
                (grammar, range(6, 7), [ord("a"), ord("b")]),
                (grammar, range(7, 8), []),
            ],
        )

        allowed = [[place for place, value in enumerate(row) if value == 0.0] for row in logits.tolist()]
        digits = list(range(ord("0"), ord("9") + 1))
        # Rows 0 and 5 are nobody's; row 4 lies behind a token that may not come.
        free = list(range(width))
        assert allowed == [free, [ord("a")], [ord("b")], digits, free, free, digits, [ord("a")]]


def test_a_grammar_that_was_compiled_before_begins_anew() -> None:
    grammars = by_bytes()
    first = grammars.compile(Constraint(regex="ab"))
    first.take(ord("a"))

    second = grammars.compile(Constraint(regex="ab"))

    assert first.masks(1) != second.masks(1) == grammars.compile(Constraint(regex="ab")).masks(1)


def test_only_the_latest_grammars_are_kept() -> None:
    grammars = by_bytes()
    for number in range(KEPT + 5):
        grammars.compile(Constraint(regex=f"a{number}"))
        grammars.compile(Constraint(regex="always"))

    assert len(grammars._kept) == KEPT
    assert Constraint(regex="always") in grammars._kept


def test_thousands_of_choices_can_be_written_to_the_last() -> None:
    wanted = tuple(f'choice "{number}"' for number in range(5000))

    grammar = by_bytes().compile(Constraint(choices=wanted))
    for token in wanted[4999].encode():
        (mask,) = grammar.masks(1)
        assert mask[token // 8] >> token % 8 & 1
        grammar.take(token)

    assert grammar.error == ""
    assert grammar.complete
