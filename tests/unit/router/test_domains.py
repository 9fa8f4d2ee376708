import numpy as np
import pytest

from catena.kit.errors import Invalid
from catena.router.core.domains import (
    MOST_EXAMPLES,
    Domain,
    check_domain,
    chosen_examples,
    classify,
    fit_head,
    gists,
    merged,
    represent,
)
from demo.questions import questions

pytestmark = pytest.mark.unit

SKILLS = ("upper", "reverse", "add", "sort", "max", "first", "last", "fact")
NOTHING = np.empty((0, 0))


def words(texts):
    return represent(texts, np.empty((len(texts), 0)))


def domain(name, examples, **fields):
    return check_domain(Domain(name=name, tenant="shared", examples=tuple(examples), **fields))


def head_of(domains):
    return fit_head(domains, [words(chosen_examples(one)) for one in domains])


@pytest.fixture(scope="module")
def head():
    return head_of([domain(s, [q.text for q in questions(6, 1, skills=[s])]) for s in SKILLS])


def test_short_texts_are_told_apart_by_their_wording(head):
    asked = questions(300, 77)
    found = [classify(head, row)[0] for row in words([q.text for q in asked])]
    right = [score.domain == q.skill for score, q in zip(found, asked, strict=True)]
    sure = [ok for score, ok in zip(found, right, strict=True) if score.probability >= 0.85]
    assert np.mean(right) >= 0.98
    assert len(sure) >= 0.9 * len(asked)
    assert np.mean(sure) >= 0.99


def test_what_belongs_nowhere_is_in_no_domain(head):
    strange = [q.text for q in questions(60, 5, skills=["swapcase", "title", "double", "caesar"])]
    strange += ["What is the capital of France?", "write a poem about the sea", "hello", "x", "!!!", "12"]
    found = [classify(head, row)[0].probability for row in words(strange)]
    assert np.mean([p >= 0.85 for p in found]) <= 0.02


def test_the_probabilities_leave_room_for_none_of_them(head):
    scores = classify(head, words(["reverse: hello"])[0])
    assert scores[0].domain == "reverse"
    assert 0.85 <= sum(s.probability for s in scores) <= 1.0
    assert len(scores) == len(SKILLS)
    assert scores[0].similarity == max(s.similarity for s in scores)


def test_one_domain_alone_does_not_claim_everything():
    head = head_of([domain("code", ["fix this python function", "why does my code raise KeyError", "refactor it"])])
    assert classify(head, words(["fix this python function please"])[0])[0].probability > 0.6
    assert classify(head, words(["a recipe for onion soup"])[0])[0].probability < 0.5


def test_no_domain_means_no_score():
    assert fit_head([], []) is None
    assert classify(None, words(["x"])[0]) == []


def test_many_examples_are_thinned_evenly_and_fitted():
    domains = [domain(s, [q.text for q in questions(200, 3, skills=[s], part="training")]) for s in SKILLS[:4]]
    assert [len(chosen_examples(d)) for d in domains] == [MOST_EXAMPLES] * 4
    rows = [words(chosen_examples(d)) for d in domains]
    assert fit_head(domains, rows) is not None


def test_meaning_decides_where_wording_does_not():
    axis = np.eye(4, dtype=np.float32)
    a, b = ["alpha one", "beta two"], ["gamma three", "delta four"]
    rows = [represent(a, axis[[0, 0]]), represent(b, axis[[1, 1]])]
    head = fit_head([domain("a", a), domain("b", b)], rows)
    assert classify(head, represent(["epsilon five"], axis[[1]])[0])[0].domain == "b"


@pytest.mark.parametrize("name", ["", "Code", "a b", "-a", "a-", "x" * 70, "é"])
def test_bad_names_are_refused(name):
    with pytest.raises(Invalid):
        domain(name, ["x"])


def test_a_domain_needs_an_example_and_keeps_each_once():
    with pytest.raises(Invalid):
        domain("a", ["", "  "])
    assert domain("a", ["x", " x ", "y"]).examples == ("x", "y")


def test_a_merged_domain_has_the_examples_of_all_in_turn_and_their_names():
    one = domain("a", ["a1", "a2", "a3"], needs_memory=True, aliases=("z",))
    two = domain("b", ["b1", "a2"], specialist="m@b")
    told = merged([one, two], domain("c", ["c1"]))
    assert (told.name, told.examples) == ("c", ("c1", "a1", "b1", "a2", "a3"))
    assert (told.aliases, told.specialist, told.needs_memory) == (("a", "z", "b"), "m@b", True)
    assert merged([one, two], one).aliases == ("z", "b")


def test_of_several_specialists_one_has_to_be_named():
    several = [domain("a", ["x"], specialist="m@a"), domain("b", ["y"], specialist="m@b")]
    with pytest.raises(Invalid, match="m@a, m@b"):
        merged(several, domain("c", ["z"]))
    assert merged(several, domain("c", ["z"]), "m@b").specialist == "m@b"
    assert merged(several, several[0]).specialist == "m@a"


def test_of_a_long_text_beginning_and_end_are_embedded():
    short, long = "upper: hello", "Sum this up. " + "word " * 400 + "In one line, please."
    gist = gists([short, long])[1]
    assert gists([short, long])[0] == short
    assert gist.startswith("Sum this up.")
    assert gist.endswith("In one line, please.")
    assert len(gist) < 600
