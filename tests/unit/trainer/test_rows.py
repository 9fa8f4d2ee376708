import json

import pytest

from catena.trainer.core.rows import BadRow, Row, Turn, normalise, read_rows, sample, split, without


def lines(*rows):
    return b"\n".join(json.dumps(row).encode() for row in rows)


def numbered(count):
    return read_rows(lines(*({"prompt": f"q{i}", "completion": f"a{i}"} for i in range(count))), "here")


def test_three_ways_to_write_a_row_mean_the_same():
    rows = read_rows(
        lines(
            {"prompt": "q", "completion": "a"},
            {"instruction": "q", "output": "a"},
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        ),
        "here",
    )
    assert set(rows) == {Row((Turn("user", "q"), Turn("assistant", "a")))}


def test_an_instructions_input_follows_it_and_a_system_text_comes_first():
    (row,) = read_rows(lines({"instruction": "q", "input": "more", "output": "a", "system": "s"}), "here")
    assert row.prompt == (Turn("system", "s"), Turn("user", "q\nmore"))
    assert row.answer == "a"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (b"{not json", "malformed"),
        (b"[1]", "JSON object"),
        (b'{"prompt": "q"}', "neither messages"),
        (b'{"prompt": "q", "completion": 3}', "Expected `str`"),
        (b'{"prompt": " ", "completion": "a"}', "the prompt is empty"),
        (b'{"prompt": "q", "completion": " "}', "the answer is empty"),
        (b'{"messages": [{"role": "user", "content": "q"}]}', "the assistant's"),
        (b'{"messages": [{"role": "boss", "content": "q"}, {"role": "assistant", "content": "a"}]}', "role 'boss'"),
    ],
)
def test_a_bad_row_is_an_error_that_names_its_line(row, said):
    good = b'{"prompt": "q", "completion": "a"}\n\n'
    with pytest.raises(BadRow, match=r"corrections, line 3: ") as caught:
        read_rows(good + row, "corrections")
    assert said in caught.value.message


def test_the_split_holds_out_a_share_the_same_way_each_time():
    rows = numbered(100)
    kept, held = split(rows, 0.2, seed=1)
    assert len(held) == 20
    assert set(kept) | set(held) == set(rows)
    assert split(rows, 0.2, seed=1) == (kept, held)
    assert split(rows, 0.2, seed=2) != (kept, held)


def test_equal_prompts_stay_on_one_side():
    rows = numbered(10) * 3
    kept, held = split(rows, 0.3, seed=1)
    assert not {row.prompt for row in kept} & {row.prompt for row in held}
    assert len(kept) + len(held) == 30


def test_one_prompt_is_held_out_of_few_and_none_of_one():
    assert len(split(numbered(2), 0.1, seed=0)[1]) == 1
    assert split(numbered(1), 0.5, seed=0)[1] == ()
    assert split(numbered(9), 0.0, seed=0)[1] == ()


def test_trusted_questions_are_not_trained_on():
    rows = numbered(5)
    assert without(rows, rows[1:3]) == (rows[0], rows[3], rows[4])


def test_a_sample_keeps_its_order_and_repeats():
    rows = numbered(50)
    few = sample(rows, 10, seed=3)
    assert few == sample(rows, 10, seed=3)
    assert list(few) == [row for row in rows if row in few]
    assert len(few) == 10


def test_comparing_overlooks_white_space_but_not_case():
    assert normalise("  a \n b ") == "a b"
    assert normalise("A") != normalise("a")
