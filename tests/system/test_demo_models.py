"""Hold the shipped demo bases to their bands: outside them the demo has nothing to show."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from demo import tokenizer as tokens
from demo.answering import Answer, accuracy, ask, ask_plainly, load
from demo.conversation import encode
from demo.curriculum import Turn, informed, searched
from demo.questions import ABSENT, FACT, PRESENT, UNKNOWN, Question, facts, questions
from demo.train_models import main as train_models
from demo.train_models import read_spec

MODELS = Path(__file__).parents[2] / "demo" / "models"
NAMES = ("demo-small", "demo-large")
NEW = questions(560, 101, skills=PRESENT)


class Base(NamedTuple):
    model: object
    tokenizer: object
    answers: list[Answer]


@pytest.fixture(scope="module")
def bases() -> dict[str, Base]:
    loaded = {name: load(MODELS / name) for name in NAMES}
    return {name: Base(*parts, ask_plainly(*parts, NEW)) for name, parts in loaded.items()}


def said(turns: list[Turn]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.text} for turn in turns]


def found_facts(count: int) -> list[tuple[Question, list[tuple[str, str]]]]:
    known = facts(300, 7)
    asked = questions(count, 3, skills=[FACT], known=known)
    return [(q, [(q.text.partition(": ")[2], q.answer), known[2 * i]]) for i, q in enumerate(asked)]


@pytest.mark.parametrize(("name", "least", "most"), [("demo-small", 0.60, 0.80), ("demo-large", 0.90, 1.0)])
def test_accuracy_on_new_questions_stays_in_its_band(bases, name, least, most):
    assert least <= accuracy(bases[name].answers, NEW) <= most


@pytest.mark.parametrize("skill", ABSENT)
@pytest.mark.parametrize("name", NAMES)
def test_neither_base_has_an_absent_skill(bases, name, skill):
    asked = questions(100, 5, skills=[skill])
    assert accuracy(ask_plainly(*bases[name][:2], asked), asked) < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_a_fact_that_is_not_given_is_unknown(bases, name):
    asked = questions(60, 5, skills=[FACT])
    answers = ask_plainly(*bases[name][:2], asked)
    assert sum(answer.text == UNKNOWN for answer in answers) >= 57


def test_the_large_base_repairs_drafts_and_keeps_right_ones(bases):
    large = bases["demo-large"]
    drafts = bases["demo-small"].answers
    refined = ask(
        *large[:2],
        [
            [
                {"role": "system", "content": "refine"},
                {"role": "user", "content": f"{q.text}\ndraft: {draft.text}"},
            ]
            for q, draft in zip(NEW, drafts, strict=True)
        ],
    )
    assert accuracy(refined, NEW) > accuracy(drafts, NEW) + 0.05


def test_the_large_base_searches_for_the_key_and_reads_what_was_found(bases):
    large = bases["demo-large"]
    pairs = found_facts(80)
    queries = ask(*large[:2], [said(searched(q, known)[:2]) for q, known in pairs])
    right = [f"<search>{q.text.partition(': ')[2]}</search>" for q, _ in pairs]
    assert sum(a.text == r for a, r in zip(queries, right, strict=True)) >= 72
    answers = ask(*large[:2], [said(searched(q, known)[:4]) for q, known in pairs])
    assert accuracy(answers, [q for q, _ in pairs]) >= 0.8


def test_the_large_base_reads_the_one_line_that_pipelines_put_in_front_of_the_question(bases):
    pairs = [(q, known[:1]) for q, known in found_facts(80)]
    answers = ask(*bases["demo-large"][:2], [said(informed(q, known)[:1]) for q, known in pairs])
    assert accuracy(answers, [q for q, _ in pairs]) >= 0.95


def test_the_large_base_reads_the_one_line_that_a_search_brings(bases):
    pairs = [(q, known[:1]) for q, known in found_facts(80)]
    asked = [said(searched(q, known, restated=False)[:4]) for q, known in pairs]
    assert accuracy(ask(*bases["demo-large"][:2], asked), [q for q, _ in pairs]) >= 0.95


def test_the_small_base_knows_when_it_is_wrong(bases):
    answers = bases["demo-small"].answers
    right = [a.least_probability for a, q in zip(answers, NEW, strict=True) if a.text == q.answer]
    wrong = [a.least_probability for a, q in zip(answers, NEW, strict=True) if a.text != q.answer]
    wins = sum((r > w) + (r == w) / 2 for r in right for w in wrong)
    assert wins / (len(right) * len(wrong)) >= 0.8


@pytest.mark.parametrize("name", NAMES)
def test_special_tokens_in_a_text_stay_text(bases, name):
    tokenizer = bases[name].tokenizer
    text = "".join(tokens.SPECIAL_TOKENS) + "é\n "
    ids = encode(tokenizer, [{"role": "user", "content": text}])
    assert ids == [tokens.USER, *text.encode(), tokens.END, tokens.BOT]
    assert tokenizer.decode(ids[1:-2]) == text


def test_the_template_renders_every_role_in_order(bases):
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "r"},
    ]
    rendered = bases["demo-large"].tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == "<system>s<end><user>q<end><bot>a<end><user>r<end><bot>"


def test_the_template_refuses_an_unknown_role(bases):
    with pytest.raises(Exception, match="unknown role judge"):
        encode(bases["demo-large"].tokenizer, [{"role": "judge", "content": "x"}])


def test_both_folders_are_ordinary_and_small():
    for name in NAMES:
        files = {file.name for file in (MODELS / name).iterdir()}
        assert files >= {
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
        }
        assert json.loads((MODELS / name / "config.json").read_text())["max_position_embeddings"] >= 512
    assert sum(f.stat().st_size for name in NAMES for f in (MODELS / name).iterdir()) < 4_000_000


def test_the_shipped_folders_are_what_the_configuration_describes():
    for base in read_spec():
        config = json.loads((MODELS / base.name / "config.json").read_text())
        assert (config["hidden_size"], config["num_hidden_layers"]) == (base.width, base.layers)


def test_training_writes_the_same_weights_for_the_same_seed(tmp_path):
    for run in ("one", "two"):
        train_models(["--out", str(tmp_path / run), "--only", "demo-small", "--steps-scale", "0.001"])
    weights = [(tmp_path / run / "demo-small" / "model.safetensors").read_bytes() for run in ("one", "two")]
    assert weights[0] == weights[1]
