"""Whose texts are read next, over an encoder that only counts."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from catena.adapters.core.encoding import Encoding, Found, Label
from catena.adapters.core.work import BaseFacts
from catena.adapters.drivers.engine.encoders.passages import Passage
from catena.adapters.drivers.engine.encoders.turns import Call, Turn, Turns, choose
from catena.adapters.drivers.engine.frames import Answer, Failed, Reply
from catena.kit.errors import Invalid

MOST = 40


class Letters:
    """A token a letter; breaks at texts with `!`."""

    facts = BaseFacts(bytes=7, context_tokens=MOST, dtype="float32")

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def read(self, asked: Encoding) -> list[Passage]:
        if any(len(text) > MOST for text in asked.texts):
            raise Invalid("too long", code="context_length_exceeded")
        return [Passage(tokens=len(text), text=text, cut=text.startswith("cut")) for text in asked.texts]

    def run(self, passages: Sequence[Passage]) -> list[Found]:
        self.batches.append([passage.text for passage in passages])
        if any("!" in passage.text for passage in passages):
            raise RuntimeError("broken")
        return [Found(labels=(Label(passage.text, 1.0),)) for passage in passages]


def turns(letters: Letters, *, most_waiting: int = 100) -> tuple[Turns, list[Answer]]:
    told: list[Answer] = []
    made = Turns(most_tokens=MOST, most_waiting=most_waiting, tell=told.append)
    made.held["e"] = letters
    return made, told


def names(answer: Answer) -> list[str]:
    assert isinstance(answer, Reply)
    assert answer.encoded is not None
    return [found.labels[0].name for found in answer.encoded.found]


def test_requests_share_a_pass_with_texts_of_their_length_and_answers_keep_their_order() -> None:
    letters = Letters()
    made, told = turns(letters)
    made.submit(1, Encoding(base="e", texts=("a" * 10, "b" * 30)))
    made.submit(2, Encoding(base="e", texts=("c" * 12, "cut" + "d" * 27)))
    for _ in range(3):
        made.step()
    assert [[text[0] + text[-1] for text in batch] for batch in letters.batches] == [["aa", "cc"], ["bb"], ["cd"]]
    assert names(told[0]) == ["a" * 10, "b" * 30]
    assert names(told[1]) == ["c" * 12, "cut" + "d" * 27]
    assert [answer.encoded.tokens for answer in told if isinstance(answer, Reply) and answer.encoded] == [40, 42]
    assert [answer.encoded.truncated for answer in told if isinstance(answer, Reply) and answer.encoded] == [0, 1]


@given(st.lists(st.integers(1, MOST), min_size=1, max_size=40))
def test_a_batch_has_the_longest_waiting_and_stays_within_its_bound(sizes: list[int]) -> None:
    letters = Letters()
    calls = [Call(number=number, passages=[Passage(tokens=size)]) for number, size in enumerate(sizes)]
    waiting = [Turn(encoder=letters, call=call, place=0) for call in calls]
    chosen = choose(waiting, MOST)
    longest = max(turn.passage.tokens for turn in chosen)
    assert waiting[0] in chosen
    assert len(chosen) == 1 or longest * len(chosen) <= MOST
    left = [turn for turn in waiting if turn not in chosen]
    if left:
        nearest = min(left, key=lambda turn: abs(turn.passage.tokens - sizes[0]))
        assert max(longest, nearest.passage.tokens) * (len(chosen) + 1) > MOST


def test_a_text_that_breaks_the_pass_fails_its_own_requests_alone() -> None:
    made, told = turns(Letters())
    made.submit(1, Encoding(base="e", texts=("a!" * 15, "a")))
    made.submit(2, Encoding(base="e", texts=("b" * 4,)))
    made.step()
    made.step()
    assert [type(answer) for answer in told] == [Failed, Reply]
    assert isinstance(told[0], Failed)
    assert (told[0].call, told[0].code) == (1, "engine_failed")
    assert names(told[1]) == ["bbbb"]


def test_what_is_refused_or_cancelled_takes_no_turn() -> None:
    letters = Letters()
    made, told = turns(letters, most_waiting=3)
    made.submit(1, Encoding(base="e", texts=("a" * (MOST + 1),)))
    made.submit(2, Encoding(base="gone", texts=("a",)))
    made.submit(3, Encoding(base="e", texts=("x", "y")))
    made.submit(4, Encoding(base="e", texts=("p", "q")))
    made.cancel(3)
    made.submit(5, Encoding(base="e", texts=("z",)))
    made.step()
    failures = [(answer.call, answer.code) for answer in told if isinstance(answer, Failed)]
    assert failures == [(1, "context_length_exceeded"), (2, "not_resident"), (4, "queue_full")]
    assert letters.batches == [["z"]]


def test_an_encoder_that_is_let_go_still_reads_what_waited() -> None:
    made, told = turns(Letters())
    made.submit(1, Encoding(base="e", texts=("a",)))
    assert (made.forget("e"), made.forget("e")) == (7, 0)
    made.step()
    assert names(told[0]) == ["a"]
