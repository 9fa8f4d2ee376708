import pytest

from catena.kit.errors import Invalid
from catena.memory.core.ranking import (
    average_in_use,
    choose_engine,
    choose_fusion,
    choose_results,
    label_filter,
    labels,
    named_first,
)
from catena.memory.core.types import ChunkType, Engine, Found, Hit, Piece

pytestmark = pytest.mark.unit


def test_code_leans_to_meaning_and_text_does_not():
    code = choose_fusion("", 0.9, text="dbsf", code="rrf")
    assert code.method == "rrf" and code.weights[0] > code.weights[1]
    assert choose_fusion("", 0.1, text="dbsf", code="rrf").method == "dbsf"
    assert choose_fusion("rrf", 0.1, text="dbsf", code="rrf").weights == (1.0, 1.0)


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(Invalid, match="rrf or dbsf"):
        choose_fusion("best", 0, text="dbsf", code="rrf")
    with pytest.raises(Invalid, match="hybrid"):
        choose_engine("best")
    assert choose_engine("") is Engine.HYBRID


def test_three_results_unless_asked_and_two_hundred_at_most():
    assert (choose_results(0), choose_results(7)) == (3, 7)
    with pytest.raises(Invalid, match="201"):
        choose_results(201)


def test_the_average_moves_only_when_it_is_off_by_a_quarter():
    assert average_in_use(100, 120) == 100
    assert average_in_use(100, 81) == 100
    assert average_in_use(100, 126) == 126
    assert average_in_use(100, 79) == 79
    assert average_in_use(0, 5) == 5
    assert average_in_use(100, 0) == 100


def test_labels_match_by_value_not_by_spelling():
    stored = set(labels({"year": 2020.0, "tags": ["a", "b"], "deep": {"y": 1, "x": 2}, 'quo"te': None}))

    def matches(**wanted):
        return all(set(options) & stored for options in label_filter(wanted))

    assert matches(year=2020) and not matches(year="2020") and not matches(year=True)
    assert matches(tags="a") and matches(tags=["z", "b"]) and not matches(tags="ab")
    assert matches(deep={"x": 2, "y": 1}) and not matches(deep={"x": 2})
    assert matches(**{'quo"te': None}) and not matches(year=2020, tags="z")
    assert matches()


def named(*names: str) -> list[Hit]:
    def hit(name: str) -> Hit:
        piece = Piece(type=ChunkType.FUNCTION, text="x", first_line=1, last_line=1, name=name)
        found = Found(id=name, document_id="d", piece=piece, title="", path="", metadata={})
        return Hit(found=found, score=1.0)

    return [hit(name) for name in names]


def order(query: str, *names: str) -> list[str]:
    return [hit.found.id for hit in named_first(query, named(*names))]


def test_a_definition_called_by_its_name_comes_first() -> None:
    assert order("where is load_store?", "open_store", "Shelf.load_store") == ["Shelf.load_store", "open_store"]
    assert order("PlanQueue", "queue", "PlanQueue") == ["PlanQueue", "queue"]
    assert order("open", "load", "open") == ["open", "load"]


def test_a_word_of_a_sentence_is_no_name() -> None:
    assert order("how does it open a file", "load", "open") == ["load", "open"]
