from contextlib import asynccontextmanager

import pytest

from catena.kit.clock import still_world
from catena.kit.outbox import Outbox
from catena.kit.store import open_store
from catena.kit.testing import MemoryBus, postgres, running, sqlite_url
from catena.memory.core.chunking import chunk
from catena.memory.core.ports import Encoding, Entry, Profile
from catena.memory.core.types import Document, Scope, Sop, SopStep
from catena.memory.drivers.library import SqlLibrary
from catena.memory.drivers.mirror import Mirror, differing
from catena.memory.drivers.tables import MIGRATIONS, metadata

from .fake_index import ListIndex

pytestmark = pytest.mark.contract

ACME = Scope(tenant="acme", collection="default")
RIVAL = Scope(tenant="rival", collection="default")


@asynccontextmanager
async def library_at(url, model="m1"):
    async with open_store(url, metadata, room="memory", migrations=MIGRATIONS) as store:
        world = still_world()
        library = SqlLibrary(store, Outbox(store, MemoryBus(), world), world, model=model)
        yield library


@pytest.fixture(params=["sqlite", "postgres"])
async def url(request, tmp_path):
    if request.param == "sqlite":
        yield sqlite_url(tmp_path)
    else:
        async with postgres() as address:
            yield address


@pytest.fixture
async def library(url):
    async with library_at(url) as library:
        yield library


def entry(scope, document_id, text, *, terms=3, type_="text", **metadata):
    document = Document(id=document_id, text=text, type=type_, metadata=metadata)
    parts = chunk(scope, document, 1600)
    return Entry(document=document, chunks=[(part, Encoding(vector=bytes(32), terms=terms)) for part in parts])


async def test_a_document_put_can_be_found_under_its_own_scope_only(library):
    touched = await library.put(ACME, [entry(ACME, "d", "hello", year=1)])
    (found,) = (await library.found(ACME, list(touched))).values()
    assert (found.document_id, found.piece.text, found.metadata) == ("d", "hello", {"year": 1})
    assert await library.found(RIVAL, list(touched)) == {}


async def test_putting_again_drops_the_chunks_of_before(library):
    before = await library.put(ACME, [entry(ACME, "d", "hello")])
    touched = await library.put(ACME, [entry(ACME, "d", "goodbye")])
    assert before < touched and len(await library.points(list(touched))) == 1
    assert await library.profile(ACME) == Profile(chunks=1, code_chunks=0)


async def test_figures_follow_what_is_kept(library):
    await library.put(ACME, [entry(ACME, "a", "def f(): pass\ndef g(): pass", type_="python"), entry(ACME, "b", "x")])
    assert await library.profile(ACME) == Profile(chunks=3, code_chunks=2)
    deleted, touched = await library.delete(ACME, ["a", "a", "zzz"])
    assert deleted == 1 and len(touched) >= 2
    assert await library.profile(ACME) == Profile(chunks=1, code_chunks=0)
    assert await library.profile(RIVAL) is None
    assert await library.collections("acme") == ["default"]


async def test_known_encodings_are_of_this_scope_and_model(url):
    hashes = [part.content_hash for part, _ in entry(ACME, "d", "hello").chunks]
    async with library_at(url) as library:
        await library.put(ACME, [entry(ACME, "d", "hello")])
        assert list(await library.known(ACME, hashes)) == hashes
        assert await library.known(RIVAL, hashes) == {}
        assert await library.outdated() == []
    async with library_at(url, model="m2") as library:
        assert await library.known(ACME, hashes) == {}
        assert await library.outdated() == [ACME]


async def test_documents_are_read_back_whole_and_in_order(library):
    await library.put(ACME, [entry(ACME, f"d{n:03}", f"text {n}", n=n) for n in range(120)])
    pages = [page async for page in library.documents(ACME)]
    documents = [document for page in pages for document in page]
    assert [document.id for document in documents] == [f"d{n:03}" for n in range(120)]
    assert documents[7].text == "text 7" and documents[7].metadata == {"n": 7}


async def test_renewing_never_undoes_a_later_put(library):
    await library.put(ACME, [entry(ACME, "d", "old")])
    renewal = entry(ACME, "d", "old")
    await library.put(ACME, [entry(ACME, "d", "new")])
    touched = await library.renew(ACME, [renewal, entry(ACME, "gone", "x")])
    points = (await library.points(list(touched))).values()
    assert [point.text for point in points] in ([], ["new"])
    assert await library.profile(ACME) == Profile(chunks=1, code_chunks=0)


async def test_a_mean_length_that_moved_makes_the_whole_scope_follow(library):
    first = await library.put(ACME, [entry(ACME, "a", "one", terms=10)])
    near = await library.put(ACME, [entry(ACME, "b", "two", terms=12)])
    far = await library.put(ACME, [entry(ACME, "c", "three", terms=40)])
    assert not first & near and first | near < far
    points = (await library.points(list(far))).values()
    assert {round(point.average_terms, 6) for point in points} == {round(62 / 3, 6)}


async def test_own_procedures_shadow_shared_ones(library):
    def sop(priority):
        return Sop(name="s", description="d", triggers=("t",), steps=(SopStep(action="a"),), priority=priority)

    await library.put_sop("shared", sop(1))
    await library.put_sop("acme", sop(2))
    await library.put_sop("acme", sop(3))
    assert await library.sops("acme") == [sop(3)]
    assert await library.sops("rival") == [sop(1)]


async def test_the_mirror_brings_an_index_in_line_and_keeps_it_there(library):
    index = ListIndex()
    mirror = Mirror(library, index)
    before = await library.put(ACME, [entry(ACME, "a", "one", tag="x"), entry(ACME, "b", "two")])
    async with running(mirror.run()):
        await mirror.follow(before)
        assert await index.inventory() == await library.stamps()
        await mirror.follow(await library.put(ACME, [entry(ACME, "a", "one", tag="y")]))
        assert await index.inventory() == await library.stamps()
        index.points.pop(next(iter(before)))
        mirror.distrust()
        await mirror.follow((await library.delete(ACME, ["b"]))[1])
        assert await index.inventory() == await library.stamps()


def test_differing_names_what_either_side_lacks_or_has_otherwise():
    assert differing({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "9", "d": "4"}) == {"b", "c", "d"}
