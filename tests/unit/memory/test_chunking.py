import pytest
from hypothesis import given
from hypothesis import strategies as st

from catena.kit.errors import Invalid
from catena.memory.core.chunking import choose_type, chunk, embedding_text
from catena.memory.core.types import ChunkType, Document, Scope

pytestmark = pytest.mark.unit

SCOPE = Scope(tenant="acme", collection="default")
SOURCE = '''#!/usr/bin/env python
"""What the module is for."""
from __future__ import annotations

import os
from a import b

LIMIT = 3


@cached
async def fetch(url: str) -> bytes:
    """Get it."""
    return await get(url)


class Shop(Base):
    """Sells things."""

    open = True

    @property
    def name(self):
        return "shop"

    class Till:
        def ring(self):
            pass

    def close(self):
        """Shut the door."""
        def inner():
            return 1
        return inner()


if __name__ == "__main__":
    main()
'''


def pieces(text, type_="python", limit=1600, path="pkg/shop.py"):
    return [part.piece for part in chunk(SCOPE, Document(id="d", text=text, type=type_, path=path), limit)]


def outline(text, **options):
    return [(str(piece.type), piece.name, piece.first_line, piece.last_line) for piece in pieces(text, **options)]


def test_python_is_cut_into_typed_pieces_with_qualified_names_and_lines():
    assert outline(SOURCE) == [
        ("TEXT", "shop", 1, 1),
        ("DOCSTRING", "shop", 2, 2),
        ("IMPORT", "shop", 3, 6),
        ("TEXT", "shop", 8, 8),
        ("FUNCTION", "fetch", 11, 14),
        ("CLASS", "Shop", 17, 34),
        ("METHOD", "Shop.name", 22, 24),
        ("CLASS", "Shop.Till", 26, 28),
        ("METHOD", "Shop.Till.ring", 27, 28),
        ("METHOD", "Shop.close", 30, 34),
        ("TEXT", "shop", 37, 38),
    ]


def test_a_class_shows_its_members_without_their_bodies():
    shop = next(piece for piece in pieces(SOURCE) if piece.name == "Shop")
    assert shop.docstring == "Sells things."
    assert "open = True" in shop.text and "def close(self): ..." in shop.text
    assert "Shut the door" not in shop.text and "return" not in shop.text


def test_a_method_stands_at_the_left_margin():
    close = next(piece for piece in pieces(SOURCE) if piece.name == "Shop.close")
    assert close.text.startswith('def close(self):\n    """Shut the door."""\n    def inner():')


def test_a_long_function_is_cut_between_statements():
    body = "\n".join(f"    value_{n} = compute(\n        {n},\n    )" for n in range(30))
    parts = pieces(f"def long():\n{body}\n", limit=200)
    assert len(parts) > 5 and {piece.name for piece in parts} == {"long"}
    assert all(len(piece.text) <= 200 for piece in parts)
    assert all(piece.text.startswith(("def long", "value_")) for piece in parts)
    assert parts[0].first_line == 1 and parts[-1].last_line == 91


def test_broken_source_keeps_what_can_be_read():
    parts = pieces("def good():\n    return 1\n\ndef bad(:\n    oops(\n\nclass Fine:\n    x = 1\n")
    assert "good" in {piece.name for piece in parts}
    assert "oops(" in "\n".join(piece.text for piece in parts)


def test_code_is_embedded_with_type_name_description_and_file():
    document = Document(id="d", text=SOURCE, type="python", path="pkg/shop.py")
    fetch = next(piece for piece in pieces(SOURCE) if piece.name == "fetch")
    head = embedding_text(document, fetch).split("\n")[:4]
    assert head == ["FUNCTION fetch", "Get it.", "pkg/shop.py", "@cached"]


def test_a_description_ends_at_200_characters():
    document = Document(id="d", text="", type="python", path="")
    (piece,) = pieces(f'def f():\n    """{"word " * 100}"""\n')
    assert len(embedding_text(document, piece).split("\n")[1]) == 200


def test_markdown_pieces_carry_their_headings_and_never_cross_one():
    text = "intro\n\n# Guide\n\nhello\n\n## Install\n\n```sh\n# no heading\nmake\n```\n\n# Other\nend"
    parts = [(piece.name, piece.first_line, piece.text) for piece in pieces(text, "markdown")]
    assert parts == [
        ("", 1, "intro"),
        ("Guide", 3, "# Guide\n\nhello"),
        ("Guide > Install", 7, "## Install\n\n```sh\n# no heading\nmake\n```"),
        ("Other", 14, "# Other\nend"),
    ]


def test_text_is_merged_by_paragraph_and_cut_between_sentences():
    text = "One. Two.\n\nThree.\n\n" + " ".join(f"Sentence number {n} is here." for n in range(40))
    parts = pieces(text, "text", limit=120)
    assert parts[0].text == "One. Two.\n\nThree."
    assert all(len(piece.text) <= 120 for piece in parts)
    assert all(piece.text.endswith(".") for piece in parts)


@given(st.text(alphabet=st.sampled_from("ab .\n\t#`é世\u3002"), max_size=400), st.sampled_from(["text", "markdown"]))
def test_no_word_of_a_text_is_lost_or_told_twice(text, type_):
    parts = pieces(text, type_, limit=50)
    assert "".join("".join(piece.text for piece in parts).split()) == "".join(text.split())
    assert all(len(piece.text) <= 50 for piece in parts)


@given(st.text(alphabet=st.sampled_from("def x():\n    class Aé=1#'\"@,"), max_size=300))
def test_any_text_can_be_read_as_python(text):
    lines = text.count("\n") + 1
    for piece in pieces(text, limit=60):
        assert 1 <= piece.first_line <= piece.last_line <= lines + 1 and piece.text.strip()


def test_unchanged_chunks_keep_their_identity_when_the_file_moves_around_them():
    before = chunk(SCOPE, Document(id="d", text=SOURCE, type="python", path="p.py"), 1600)
    moved = SOURCE.replace("LIMIT = 3", "LIMIT = 3\nMORE = 4\n")
    after = chunk(SCOPE, Document(id="d", text=moved, type="python", path="p.py"), 1600)
    assert len({part.id for part in before} - {part.id for part in after}) == 1
    assert len({part.id for part in after}) == len(after)


def test_the_same_words_twice_in_one_document_are_two_chunks():
    parts = chunk(SCOPE, Document(id="d", text="def f(): pass\ndef f(): pass\n", type="python"), 1600)
    assert len({part.id for part in parts}) == 2 and len({part.content_hash for part in parts}) == 1


def test_tenants_and_collections_give_other_ids():
    document = Document(id="d", text="hello")
    scopes = [("a", "b"), ("a", "c"), ("b", "b"), ("a/b", "b"), ("a", "b/b")]
    ids = {chunk(Scope(tenant=tenant, collection=name), document, 99)[0].id for tenant, name in scopes}
    assert len(ids) == len(scopes)


def test_the_type_follows_the_path_unless_it_is_named():
    assert choose_type("", "a/b.py") == "python"
    assert choose_type("", "README.MD") == "markdown"
    assert choose_type("", "notes") == "text"
    assert choose_type("text", "a.py") == "text"
    with pytest.raises(Invalid, match="pdf"):
        choose_type("pdf", "")


def test_docstrings_and_imports_have_types_of_their_own():
    kinds = {piece.type for piece in pieces(SOURCE)}
    assert kinds == set(ChunkType)
