import asyncio
import os
import shutil
import signal
import subprocess
import sys

import msgspec
import pytest
from google.protobuf.struct_pb2 import Struct

from catena.api.events.v1.events_pb2 import DocumentIndexed
from catena.api.memory.v1 import memory_pb2 as pb
from catena.kit.bus import open_bus
from catena.kit.config import BusConfig
from catena.kit.errors import Invalid, Missing, Unavailable
from catena.kit.testing import eventually, nats_server, running
from catena.memory.config import MemoryConfig

pytestmark = pytest.mark.contract

CODE = '''"""Shop arithmetic."""

import math


def total(prices):
    """Add up a basket of prices."""
    return math.fsum(prices)


class Basket:
    """Things that a customer wants."""

    def add(self, item):
        """Put one more item in."""
        self.items.append(item)
'''


def documents(*texts, prefix="d", **fields):
    return [pb.Document(id=f"{prefix}{number}", text=text, **fields) for number, text in enumerate(texts)]


def put(*items, collection=""):
    return pb.PutDocumentsRequest(collection=collection, documents=items)


def labels(**fields):
    struct = Struct()
    struct.update(fields)
    return struct


async def found(room, query, tenant="acme", **fields):
    answer = await room.ask("Search", pb.SearchRequest(query=query, **fields), tenant)
    return [hit.chunk.document_id for hit in answer.hits]


async def test_finds_by_meaning_and_by_word(room):
    texts = ("The cat sleeps on the sofa.", "Invoices are due in thirty days.", "Part number XJ-9042 is out of stock.")
    await room.ask("PutDocuments", put(*documents(*texts)))
    assert (await found(room, "a feline is napping", engine="vector"))[0] == "d0"
    assert (await found(room, "XJ-9042", engine="bm25")) == ["d2"]
    for fusion in ("", "rrf", "dbsf"):
        assert (await found(room, "when must I pay the bill?", fusion=fusion))[0] == "d1"


async def test_python_comes_back_as_typed_chunks_with_their_lines(room):
    await room.ask("PutDocuments", put(pb.Document(id="shop", path="shop/basket.py", text=CODE)))
    answer = await room.ask("Search", pb.SearchRequest(query="function that sums prices"))
    best = answer.hits[0].chunk
    assert (best.type, best.name, best.path) == ("FUNCTION", "total", "shop/basket.py")
    assert (best.first_line, best.last_line, best.docstring) == (6, 8, "Add up a basket of prices.")
    everything = await room.ask("Search", pb.SearchRequest(query="shop basket", n_results=20))
    kinds = {(hit.chunk.type, hit.chunk.name) for hit in everything.hits}
    assert {("DOCSTRING", "basket"), ("IMPORT", "basket"), ("CLASS", "Basket"), ("METHOD", "Basket.add")} <= kinds


async def test_only_changed_chunks_are_embedded_again(room):
    first = await room.ask("PutDocuments", put(pb.Document(id="shop", path="a.py", text=CODE)))
    again = await room.ask("PutDocuments", put(pb.Document(id="shop", path="a.py", text="# moved\n" + CODE)))
    edited = CODE.replace("math.fsum", "sum")
    last = await room.ask("PutDocuments", put(pb.Document(id="shop", path="a.py", text=edited)))
    assert (first.chunks_embedded, first.chunks_unchanged) == (5, 0)
    assert again.chunks_unchanged == 5
    assert (last.chunks_embedded, last.chunks_unchanged) == (1, 4)


async def test_a_document_put_again_replaces_itself_and_one_deleted_is_gone(room):
    await room.ask("PutDocuments", put(*documents("apples are red")))
    await room.ask("PutDocuments", put(*documents("bananas are yellow")))
    assert await found(room, "apples", engine="bm25") == []
    gone = await room.ask("DeleteDocuments", pb.DeleteDocumentsRequest(ids=["d0", "d0", "unknown"]))
    assert gone.deleted == 1
    assert await found(room, "bananas") == []


async def test_tenants_and_collections_never_mix(room):
    await room.ask("PutDocuments", put(*documents("the secret is fortytwo", "other things")), tenant="acme")
    before = await room.ask("Search", pb.SearchRequest(query="secret fortytwo"), tenant="acme")
    rival = documents(*["the secret is unknown"] * 30, prefix="d")
    await room.ask("PutDocuments", put(*rival), tenant="rival")
    await room.ask("PutDocuments", put(*rival, collection="side"), tenant="acme")
    after = await room.ask("Search", pb.SearchRequest(query="secret fortytwo"), tenant="acme")
    assert [(hit.chunk.id, hit.score) for hit in after.hits] == [(hit.chunk.id, hit.score) for hit in before.hits]
    theirs = await room.ask("Search", pb.SearchRequest(query="fortytwo", n_results=50, engine="bm25"), tenant="rival")
    assert not theirs.hits
    await room.ask("DeleteDocuments", pb.DeleteDocumentsRequest(ids=["d0"]), tenant="rival")
    assert (await found(room, "secret fortytwo"))[0] == "d0"


async def test_metadata_filters(room):
    items = documents("red fruit", metadata=labels(year=2020, tags=["a", "b"])) + documents(
        "red fruit", prefix="e", metadata=labels(year=2021, tags=["b"])
    )
    await room.ask("PutDocuments", put(*items))
    assert await found(room, "fruit", filter=labels(year=2020)) == ["d0"]
    assert set(await found(room, "fruit", filter=labels(tags="b"))) == {"d0", "e0"}
    assert set(await found(room, "fruit", filter=labels(year=[2020, 2021]))) == {"d0", "e0"}
    assert await found(room, "fruit", filter=labels(year=2021, tags="a")) == []
    answer = await room.ask("Search", pb.SearchRequest(query="fruit", filter=labels(year=2021)))
    assert answer.hits[0].chunk.metadata == labels(year=2021, tags=["b"])


BAD_REQUESTS = [
    ("Search", pb.SearchRequest(query="  "), Invalid, "empty"),
    ("Search", pb.SearchRequest(query="x", engine="magic"), Invalid, "vector, bm25, hybrid"),
    ("Search", pb.SearchRequest(query="x", fusion="magic"), Invalid, "rrf or dbsf"),
    ("Search", pb.SearchRequest(query="x", n_results=1000), Invalid, "200"),
    ("Search", pb.SearchRequest(query="x", collection="nowhere"), Missing, "there are: none"),
    ("Search", pb.SearchRequest(query="x", collection="a/b"), Invalid, "1 to 64"),
    ("PutDocuments", put(pb.Document(text=" \n")), Invalid, "no text"),
    ("PutDocuments", put(pb.Document(text="a\0b")), Invalid, "NUL"),
    ("PutDocuments", put(pb.Document(text="x", type="pdf")), Invalid, "text, markdown, python"),
    ("PutDocuments", put(pb.Document(text="x", metadata=labels(n=float("nan")))), Invalid, "not a JSON number"),
    ("PutDocuments", put(pb.Document(text="x" * 5_000_000)), Invalid, "max_document_bytes"),
    ("PutSop", pb.PutSopRequest(sop=pb.Sop(name="x")), Invalid, "at least one trigger"),
]


async def test_bad_requests_say_what_is_wrong(room):
    for method, request, kind, message in BAD_REQUESTS:
        with pytest.raises(kind, match=message):
            await room.ask(method, request)


async def test_procedures_are_stored_listed_and_matched(room):
    sop = pb.Sop(
        name="deploy",
        description="Bring a release out",
        triggers=["deploy", "release", "配置"],
        priority=4,
        category="devops",
        steps=[pb.SopStep(action="run the tests", condition="always"), pb.SopStep(action="tag it")],
    )
    stored = await room.ask("PutSop", pb.PutSopRequest(sop=sop))
    assert stored.sop == sop
    answer = await room.ask("MatchSops", pb.MatchSopsRequest(text="Please DEPLOY the new release"))
    assert answer.matches == [pb.SopMatch(sop=sop, score=22, triggers=["deploy", "release"])]
    assert (await room.ask("ListSops", pb.ListSopsRequest(category="devops"))).sops == [sop]
    assert not (await room.ask("ListSops", pb.ListSopsRequest(category="food"))).sops
    assert not (await room.ask("MatchSops", pb.MatchSopsRequest(text="deploy"), tenant="rival")).matches


async def test_procedures_in_a_folder_are_everybodys(house, open_room, tmp_path):
    (tmp_path / "sops").mkdir()
    one = {"name": "greet", "description": "Say hello", "trigger": ["hello"], "steps": [{"action": "wave"}]}
    (tmp_path / "sops" / "greet.json").write_bytes(msgspec.json.encode(one))
    async with open_room(house, MemoryConfig(sops=str(tmp_path / "sops"))) as room:
        answer = await room.ask("MatchSops", pb.MatchSopsRequest(text="hello there"), tenant="anybody")
        assert [match.sop.name for match in answer.matches] == ["greet"]


async def test_rebuild_indexes_everything_anew(room):
    await room.ask("PutDocuments", put(*documents("apples", "pears", "plums")))
    answer = await room.ask("Rebuild", pb.RebuildRequest())
    assert answer.chunks == 3
    assert await found(room, "pears", engine="bm25") == ["d1"]


async def test_a_lost_index_fills_itself_from_the_documents(house, open_room):
    async with open_room(house) as room:
        await room.ask("PutDocuments", put(*documents("apples", "pears")))
    shutil.rmtree(house.folder("index"))
    async with open_room(house) as room:

        async def whole():
            return await found(room, "pears", engine="bm25") == ["d1"]

        await eventually(whole)


async def test_acknowledged_documents_survive_kill_9_of_the_index_process(room):
    pid = index_pid(room.house)
    acknowledged = []

    async def write(number):
        try:
            await room.ask("PutDocuments", put(pb.Document(id=f"n{number}", text=f"word{number} stands here")))
        except Unavailable:
            return
        acknowledged.append(number)

    writing = [asyncio.create_task(write(number)) for number in range(40)]
    await eventually(lambda: len(acknowledged) > 3, every_s=0.001)
    os.kill(pid, signal.SIGKILL)
    await asyncio.gather(*writing)
    assert len(acknowledged) > 3 and index_pid(room.house) != pid
    for number in acknowledged:
        assert await found(room, f"word{number}", engine="bm25") == [f"n{number}"]


async def test_acknowledged_documents_survive_kill_9_of_the_room(house, call_room):
    acknowledged = []
    process = start(house)
    try:
        async with call_room(house) as room:
            await eventually(lambda: answers(room))
            writing = asyncio.create_task(write_on(room, acknowledged))
            await eventually(lambda: len(acknowledged) > 10)
            process.kill()
            process.wait()
            await writing
        process = start(house)
        async with call_room(house) as room:
            await eventually(lambda: answers(room))
            for number in acknowledged:
                assert await found(room, f"word{number}", engine="bm25") == [f"n{number}"]
    finally:
        process.terminate()
        assert process.wait(20) == 0
    await eventually(lambda: not processes_of(house))


async def test_tells_of_documents_indexed_and_removed(house, open_room, tmp_path):
    async with nats_server(tmp_path / "nats") as url:
        house = msgspec.structs.replace(house, bus=BusConfig(url=url))
        async with open_room(house) as room, open_bus(url, name="outsider") as bus:
            await bus.ensure_streams()
            seen = []

            async def note(event):
                seen.append((event.tenant, event.subject, DocumentIndexed.FromString(event.data).chunks))

            async with running(bus.consume("outsider", ["memory.document.indexed"], note)):
                await room.ask("PutDocuments", put(*documents("apples", "pears")))
                await room.ask("DeleteDocuments", pb.DeleteDocumentsRequest(ids=["d0"]))
                await eventually(lambda: len(seen) == 3)
            assert seen == [("acme", "d0", 1), ("acme", "d1", 1), ("acme", "d0", 0)]


def start(house):
    config = house.folder() / "catena.yaml"
    config.write_bytes(msgspec.yaml.encode(house))
    command = [sys.executable, "-m", "catena.memory", "--config", str(config)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


async def answers(room):
    try:
        await room.ask("ListSops", pb.ListSopsRequest())
    except Unavailable:
        return False
    return True


async def write_on(room, acknowledged):
    for number in range(10_000):
        try:
            await room.ask("PutDocuments", put(pb.Document(id=f"n{number}", text=f"word{number} stands here")))
        except Unavailable:
            return
        acknowledged.append(number)


def index_pid(house):
    (pid,) = processes_of(house)
    return pid


def processes_of(house):
    """Ids of index processes that work on this home."""
    found_pids = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        if b"catena.memory.drivers.edge_process" in words and str(house.folder("index")).encode() in words:
            found_pids.append(int(pid))
    return found_pids
