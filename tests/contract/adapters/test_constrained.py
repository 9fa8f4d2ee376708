"""Answers under a schema, a regex or choices, from random weights over two vocabularies: bytes, and a small BPE."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from catena.adapters.core.work import Constraint, Done, Message, Sampling, Weights, Work
from catena.adapters.drivers.engine.adapter_weights import read_adapter
from catena.adapters.drivers.engine.base_weights import read_base
from catena.adapters.drivers.engine.batch import Batch
from catena.adapters.drivers.engine.frames import Answer, Failed, Finished, Output, Settings
from catena.adapters.drivers.engine.loop import Held, Loop
from catena.adapters.drivers.engine.text import Text
from demo import tokenizer as bytewise
from tests.contract.adapters.making import make_adapter, part_of

CONTEXT = 4096
LINES = [
    '{"name": "Ada Lovelace", "age": 36, "tags": ["mathematics", "poetry"], "alive": false}',
    '{\n  "question": "What is the capital of France?",\n  "answer": "Paris",\n  "confidence": 0.97\n}',
    "The quick brown fox jumps over the lazy dog; yes, no, maybe, positive and negative.",
]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def small_bpe() -> PreTrainedTokenizerFast:
    """A byte-level BPE whose tokens cross the borders of JSON's own words (`": "`, `", "`), trained here."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<end>", "<system>", "<user>", "<bot>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, min_frequency=1, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(LINES * 3, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<end>",
        chat_template=bytewise.CHAT_TEMPLATE,
    )


def make_base(folder: Path, tokenizer: PreTrainedTokenizerFast, *, seed: int, padding: int = 0) -> Path:
    """A random Llama over `tokenizer`, its head `padding` wider than the vocabulary."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + padding,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Bench:
    """A loop over random bases; requests go the way they go in the worker."""

    def __init__(self, folders: dict[str, Path], adapters: dict[str, Path], **batch: int) -> None:
        self.told: list[Answer] = []
        self.clock = iter(range(10**9))
        self.calls = iter(range(1, 10**9))
        self.loop = Loop(
            Settings(socket="", coalesce_s=0.0, queue=1000), self.told.append, lambda: next(self.clock) * 0.001
        )
        sizes = {"max_rows": 32, "kv_bytes": 1 << 28, "prefill_tokens": 512} | batch
        for name, folder in folders.items():
            decoder = read_base(folder, dtype="auto", device=torch.device("cpu"), kv_bytes=sizes["kv_bytes"])
            batch_of = Batch(decoder, **sizes)
            self.loop.bases[name] = Held(decoder=decoder, text=Text(folder, lambda: 0.0), batch=batch_of)
        for key, folder in adapters.items():
            held = self.loop.bases["bytes"]
            held.adapters[key] = read_adapter(key, [part_of(folders["bytes"], folder)], held.decoder)

    def submit(
        self,
        base: str = "bytes",
        constraint: Constraint | None = None,
        *,
        adapter: str = "",
        draft: str = "",
        text: str = "go",
        **sampling: Any,
    ) -> int:
        call = next(self.calls)
        asked = Work(
            weights=Weights(base=base, adapter=adapter),
            messages=(Message(role="user", content=text),),
            sampling=Sampling(**{"max_tokens": 2000, "temperature": 1.0, "seed": 1, "logprobs": True} | sampling),
            draft=Weights(base=draft) if draft else None,
            draft_tokens=4,
            constraint=constraint,
        )
        held = self.loop.bases[base].text
        grammars = [held.grammars.compile(constraint) for _ in range(asked.sampling.n)] if constraint else []
        self.loop.submit(call, asked, held.chat(asked.messages), grammars)
        return call

    def drain(self) -> None:
        while any(held.batch.busy for held in self.loop.bases.values()):
            for name, held in self.loop.bases.items():
                self.loop._step(name, held)

    def ask(self, *args: Any, **fields: Any) -> tuple[str, str]:
        """One answer's text and end."""
        call = self.submit(*args, **fields)
        self.drain()
        return self.answer(call)

    def answer(self, call: int, index: int = 0) -> tuple[str, str]:
        pieces = [
            piece
            for told in self.told
            if isinstance(told, Output) and told.call == call
            for piece in told.pieces
            if piece.index == index
        ]
        assert pieces, [told for told in self.told if isinstance(told, Failed)]
        return "".join(piece.text for piece in pieces), pieces[-1].finish

    def logprobs(self, call: int) -> list[tuple[str, float]]:
        outputs = [told for told in self.told if isinstance(told, Output) and told.call == call]
        return [(e.token, e.logprob) for told in outputs for piece in told.pieces for e in piece.logprobs]

    def alternatives(self, call: int) -> list[set[str]]:
        outputs = [told for told in self.told if isinstance(told, Output) and told.call == call]
        return [{t for t, _ in e.top} for told in outputs for piece in told.pieces for e in piece.logprobs]

    def done(self, call: int) -> Done:
        return next(told.done for told in self.told if isinstance(told, Finished) and told.call == call)

    def failure(self, call: int) -> Failed:
        return next(told for told in self.told if isinstance(told, Failed) and told.call == call)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], dict[str, Path]]:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("constrained")
    bases = {
        "bytes": make_base(root / "bytes", bytewise.build(CONTEXT), seed=0),
        "bpe": make_base(root / "bpe", small_bpe(), seed=1, padding=45),
        "draft": make_base(root / "draft", bytewise.build(CONTEXT), seed=2),
    }
    return bases, {f"a{rank}": make_adapter(bases["bytes"], root / f"a{rank}", seed=rank, r=rank) for rank in (4, 16)}


@pytest.fixture
def bench(folders: tuple[dict[str, Path], dict[str, Path]]) -> Bench:
    return Bench(*folders)


def schema(of: Any) -> Constraint:
    return Constraint(json_schema=json.dumps(of))


WORDS = st.text(st.sampled_from('ab "\\\n\u00e9\u4e2d\U0001f600/'), max_size=5)
LEAVES = st.one_of(
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": "string", "pattern": "^[a-c]{1,4}$"}]),
    st.integers(0, 6).map(lambda most: {"type": "string", "maxLength": most}),
    st.tuples(st.integers(-50, 50), st.integers(0, 900)).map(
        lambda pair: {"type": "integer", "minimum": pair[0], "maximum": pair[0] + pair[1]}
    ),
    st.lists(st.one_of(WORDS, st.integers(-9, 9), st.booleans(), st.none()), min_size=1, max_size=3).map(
        lambda values: {"enum": values}
    ),
)


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    arrays = st.tuples(inner, st.integers(0, 1)).map(
        lambda pair: {"type": "array", "items": pair[0], "minItems": pair[1], "maxItems": pair[1] + 1}
    )
    named = st.dictionaries(st.one_of(st.sampled_from(["name", "age"]), WORDS), inner, max_size=3)
    objects = st.tuples(named, st.randoms(use_true_random=False)).map(
        lambda pair: {
            "type": "object",
            "properties": pair[0],
            "required": [key for key in pair[0] if pair[1].random() < 0.6],
            "additionalProperties": False,
        }
    )
    return st.one_of(arrays, objects, st.lists(inner, min_size=1, max_size=2).map(lambda some: {"anyOf": some}))


SCHEMAS = st.recursive(LEAVES, nested, max_leaves=4)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=SCHEMAS, seed=st.integers(0, 1000), base=st.sampled_from(["bytes", "bpe"]))
def test_random_weights_under_any_small_schema_write_json_that_satisfies_it(
    bench: Bench, wanted: Any, seed: int, base: str
) -> None:
    text, finish = bench.ask(base, schema(wanted), seed=seed)

    assert finish == "stop"
    jsonschema.validate(json.loads(text), wanted)


@pytest.mark.parametrize("base", ["bytes", "bpe"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "pattern", [r"\d{3}-\d{4}", "(yes|no)!", "[a-c]{2}(é|中)+x", r"[A-Z0-9_]+@[a-z]{1,5}\.(com|org)"]
)
def test_answers_match_the_regex(bench: Bench, base: str, temperature: float, pattern: str) -> None:
    calls = [bench.submit(base, Constraint(regex=pattern), seed=seed, temperature=temperature) for seed in range(4)]
    bench.drain()

    for text, finish in map(bench.answer, calls):
        if finish == "stop":
            assert re.fullmatch(pattern, text)
        else:
            assert temperature == 0.0, "only the likeliest token for ever never ends a repetition"


@pytest.mark.parametrize("base", ["bytes", "bpe"])
def test_one_of_the_choices_is_answered(bench: Bench, base: str) -> None:
    choices = ('say "hi"\n', "positive", "po", "\U0001f600\\")
    calls = [bench.submit(base, Constraint(choices=choices), seed=seed, temperature=2.0) for seed in range(30)]
    bench.drain()

    answers = [bench.answer(call) for call in calls]
    assert {finish for _, finish in answers} == {"stop"}
    assert len({text for text, _ in answers} & set(choices)) == len({text for text, _ in answers}) >= 2


def test_any_object_is_json(bench: Bench) -> None:
    calls = [bench.submit("bytes", schema({"type": "object"}), seed=seed) for seed in range(6)]
    bench.drain()

    whole = [text for text, finish in map(bench.answer, calls) if finish == "stop"]
    assert whole
    assert all(isinstance(json.loads(text), dict) for text in whole)


def test_properties_come_in_the_order_of_the_schema(bench: Bench) -> None:
    def ordered(names: Sequence[str]) -> Any:
        properties = {name: {"type": "boolean"} for name in names}
        return {"type": "object", "properties": properties, "required": sorted(names), "additionalProperties": False}

    for names in (["zeta", "alpha", "mid"], ["mid", "zeta", "alpha"]):
        assert list(json.loads(bench.ask("bytes", schema(ordered(names)))[0])) == names


def test_an_answer_that_is_cut_says_so(bench: Bench) -> None:
    text, finish = bench.ask("bytes", schema(PERSON), max_tokens=9)

    assert finish == "length"
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)
    assert bench.done(1).output_tokens == 9


def test_neighbours_without_a_grammar_answer_as_if_alone(folders: tuple[dict[str, Path], dict[str, Path]]) -> None:
    free = [("", 0.0, 1), ("a4", 0.0, 2), ("a16", 0.9, 3), ("", 0.9, 4), ("a4", 0.9, 5)]
    alone = []
    for adapter, temperature, seed in free:
        bench = Bench(*folders)
        call = bench.submit(adapter=adapter, temperature=temperature, seed=seed, max_tokens=40)
        bench.drain()
        alone.append([token for token, _ in bench.logprobs(call)])
    bench = Bench(*folders)
    calls, fenced = [], []
    for adapter, temperature, seed in free:
        calls.append(bench.submit(adapter=adapter, temperature=temperature, seed=seed, max_tokens=40))
        fenced.append(bench.submit("bytes", schema(PERSON), adapter=adapter, temperature=temperature, seed=seed))

    bench.drain()

    assert [[token for token, _ in bench.logprobs(call)] for call in calls] == alone
    for call in fenced:
        text, finish = bench.answer(call)
        assert finish == "length" or not jsonschema.validate(json.loads(text), PERSON)


def test_several_answers_each_follow_their_own_way(bench: Bench) -> None:
    call = bench.submit("bpe", schema(PERSON), n=4)
    bench.drain()

    answers = [bench.answer(call, index) for index in range(4)]
    for text, finish in answers:
        assert finish == "stop"
        jsonschema.validate(json.loads(text), PERSON)
    assert len(set(answers)) > 1


def test_speculation_under_a_schema_changes_no_greedy_answer(folders: tuple[dict[str, Path], dict[str, Path]]) -> None:
    bases, adapters = folders
    for draft in ("bytes", "draft"):
        bench = Bench(bases | {"draft": bases[draft]}, adapters)
        plain = bench.submit("bytes", schema(PERSON), temperature=0.0, max_tokens=300)
        drafted = bench.submit("bytes", schema(PERSON), temperature=0.0, max_tokens=300, draft="draft")
        bench.drain()

        assert bench.answer(drafted) == bench.answer(plain)
        assert [p for _, p in bench.logprobs(drafted)] == pytest.approx([p for _, p in bench.logprobs(plain)], abs=1e-4)
        done = bench.done(drafted)
        assert done.drafted > 0
        if draft == "bytes":
            # The draft is masked like the target, so a twin is always right.
            assert done.accepted == done.drafted


@pytest.mark.parametrize(
    "shifts",
    [{"logit_bias": ((ord("q"), 4.0),)}, {"repetition_penalty": 3.0}, {"frequency_penalty": 1.5}],
    ids=["bias", "repetition", "frequency"],
)
def test_shifted_logits_are_drawn_from_the_same_with_a_draft(bench: Bench, shifts: dict[str, Any]) -> None:
    texts = [
        bench.ask("bytes", temperature=0.0, max_tokens=40, draft=draft, **more)[0]
        for draft, more in (("", shifts), ("draft", shifts), ("", {}))
    ]

    assert texts[0] == texts[1] != texts[2]


def test_speculation_under_a_grammar_draws_as_the_target_would(
    folders: tuple[dict[str, Path], dict[str, Path]],
) -> None:
    choices = Constraint(choices=("aa", "ab", "ba", "cc"))
    shares = []
    for draft in ("", "draft"):
        bench = Bench(*folders)
        calls = [bench.submit("bytes", choices, seed=seed, draft=draft) for seed in range(600)]
        bench.drain()
        texts = [bench.answer(call)[0] for call in calls]
        shares.append([texts.count(choice) / len(texts) for choice in choices.choices])

    # Five standard errors of the difference of two shares of 600 draws.
    assert max(abs(a - b) for a, b in zip(*shares, strict=True)) < 5 * (0.5 / 600) ** 0.5


def test_forced_words_cost_no_forward_passes(bench: Bench) -> None:
    long = {"type": "object", "properties": {"a_rather_long_property_name": {"type": "boolean"}}}
    wanted = long | {"required": ["a_rather_long_property_name"], "additionalProperties": False}
    call = bench.submit("bytes", schema(wanted))
    bench.drain()

    text, finish = bench.answer(call)
    assert finish == "stop"
    jsonschema.validate(json.loads(text), wanted)
    assert bench.loop.bases["bytes"].batch.forwards < bench.done(call).output_tokens - 20


def test_log_probabilities_are_those_within_the_grammar(bench: Bench) -> None:
    call = bench.submit("bytes", Constraint(regex="[ab]c"), temperature=0.0, top=5)
    bench.drain()

    (first, chance), (second, sure) = bench.logprobs(call)
    assert first in "ab"
    assert second == "c"
    assert torch.tensor([chance]).exp() >= 0.5
    assert sure == 0.0
    assert bench.alternatives(call) == [{"a", "b"}, set()]
    # Nothing can follow, so no end is asked of the model.
    assert bench.done(call).output_tokens == 2


def test_an_answer_that_cannot_go_on_fails_and_its_neighbours_do_not(bench: Bench) -> None:
    broken, other = bench.submit("bytes", Constraint(regex="[0-9]{30}"), n=2), bench.submit(text="x", max_tokens=20)
    for _ in range(3):
        bench.loop._step("bytes", bench.loop.bases["bytes"])
    row = bench.loop._live[broken][0]
    assert row.grammar is not None
    row.grammar._matcher.consume_token(ord("x"))

    bench.drain()

    assert bench.failure(broken).code == "constraint_failed"
    assert bench.done(other).output_tokens == 20
    assert not bench.loop._live
