import asyncio
import threading

import numpy as np
import pytest

from catena.embed import BackgroundEmbedder, Embedder
from catena.embed.folder import MODEL, TOKENIZER, ModelCard, read_card, write_card
from catena.kit.errors import Invalid, Missing

pytestmark = pytest.mark.unit

CARD = ModelCard(name="letters", dimension=2, max_tokens=8, digest="")


class Letters:
    """Counts a's and b's, and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, text):
        self.asked.append(text)
        vector = np.array([text.count("a"), text.count("b")], np.float32)
        return vector / max(float(np.linalg.norm(vector)), 1e-9)


def test_rows_follow_the_order_of_the_texts():
    rows = Embedder(CARD, Letters()).embed(["b", "a", "b"])
    assert rows.tolist() == [[0, 1], [1, 0], [0, 1]]


def test_a_text_seen_before_is_not_computed_again():
    forward = Letters()
    embedder = Embedder(CARD, forward)
    embedder.embed(["a", "b", "a"])
    embedder.embed(["b"])
    assert forward.asked == ["a", "b"]


def test_the_cache_forgets_the_text_used_longest_ago():
    forward = Letters()
    embedder = Embedder(CARD, forward, cache_texts=2)
    embedder.embed(["a", "b", "a", "ab", "a", "b"])
    assert forward.asked == ["a", "b", "ab", "b"]


def test_a_caller_who_writes_into_the_result_does_not_spoil_the_cache():
    embedder = Embedder(CARD, Letters())
    embedder.embed(["a"])[:] = 7
    assert embedder.embed(["a"]).tolist() == [[1, 0]]


def test_no_texts_give_no_rows():
    assert Embedder(CARD, Letters()).embed([]).shape == (0, 2)


def test_refuses_what_is_not_text():
    with pytest.raises(Invalid, match="int"):
        Embedder(CARD, Letters()).embed([3])


async def test_a_query_overtakes_the_rest_of_a_long_document():
    gate = threading.Event()
    forward = Letters()

    def slow(text):
        gate.wait(5)
        return forward(text)

    background = BackgroundEmbedder(Embedder(CARD, slow))
    document = asyncio.create_task(background([f"a{n}" for n in range(40)]))
    await asyncio.sleep(0)
    query = asyncio.create_task(background(["query b"]))
    await asyncio.sleep(0)
    gate.set()
    rows, one = await document, await query
    background.close()
    assert rows.shape == (40, 2) and one.tolist() == [[0, 1]]
    assert forward.asked.index("query b") < forward.asked.index("a39")


def test_a_folder_whose_bytes_changed_is_refused(tmp_path):
    for name in (MODEL, TOKENIZER):
        (tmp_path / name).write_bytes(b"bytes")
    write_card(tmp_path, name="x", dimension=2, max_tokens=8)
    assert read_card(tmp_path).dimension == 2
    (tmp_path / MODEL).write_bytes(b"byteS")
    with pytest.raises(Invalid, match=r"catena.embed.export --out .*, or name another folder as `embedding`"):
        read_card(tmp_path)


def test_an_absent_folder_names_the_cure(tmp_path):
    with pytest.raises(Missing, match=r"catena.embed.export --out .*, or name another folder as `embedding`"):
        read_card(tmp_path / "nowhere")
