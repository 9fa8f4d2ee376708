import io
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catena.artifacts import tar
from catena.artifacts.digest import folder_digest
from catena.artifacts.gate import Checked
from catena.artifacts.store import ArtifactStore
from catena.kit.errors import Invalid, Missing


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def leftovers(store: ArtifactStore) -> list[str]:
    return [path.name for path in store.root.iterdir() if path.name.startswith(".")]


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as made:
        for info, raw in members:
            info.size = len(raw)
            made.addfile(info, io.BytesIO(raw))
    return held.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_a_folder_put_in_is_found_under_its_digest_and_passes_the_gate(
    store: ArtifactStore, sealed: Path, check: Callable[..., Checked]
) -> None:
    digest = store.put_folder(sealed)
    assert store.path(digest) == store.root / digest[:2] / digest
    assert digest == folder_digest(sealed)
    assert check(store.path(digest), digest=digest).signer == "trainer"
    assert store.put_folder(sealed) == digest
    assert store.list() == [digest]
    assert leftovers(store) == []


def test_a_deleted_artifact_is_gone_and_can_come_back(store: ArtifactStore, sealed: Path) -> None:
    digest = store.put_folder(sealed)
    store.delete(digest)
    assert store.list() == []
    for call in (store.path, store.delete):
        with pytest.raises(Missing):
            call(digest)
    assert store.put_folder(sealed) == digest


def test_an_unsigned_artifact_gains_a_signature_and_a_signed_one_keeps_its_own(
    store: ArtifactStore, sealed: Path, check: Callable[..., Checked]
) -> None:
    signed = (sealed / "model.sig").read_bytes()
    (sealed / "model.sig").unlink()
    digest = store.put_folder(sealed)
    (sealed / "model.sig").write_bytes(signed)
    assert store.put_folder(sealed) == digest
    assert check(store.path(digest)).signer == "trainer"
    (sealed / "model.sig").write_bytes(b"junk")
    store.put_folder(sealed)
    assert check(store.path(digest)).signer == "trainer"


def test_what_a_crash_left_is_cleared_at_the_next_start(store: ArtifactStore, sealed: Path) -> None:
    digest = store.put_folder(sealed)
    (store.root / ".staging-x").mkdir()
    (store.root / ".staging-x" / "part").write_text("half")
    again = ArtifactStore(store.root)
    assert again.list() == [digest]
    assert leftovers(again) == []


def test_a_failed_import_leaves_nothing(store: ArtifactStore, sealed: Path, tmp_path: Path) -> None:
    (sealed / "link").symlink_to("/etc/passwd")
    with pytest.raises(Invalid) as caught:
        store.put_folder(sealed)
    assert caught.value.code == "adapter_unsafe_file"
    with pytest.raises(Invalid):
        store.put_tar(archive((member("a"), b"1"), (member("../b"), b"2")))
    small = ArtifactStore(tmp_path / "small", max_bytes=100)
    (sealed / "link").unlink()
    with pytest.raises(Invalid) as caught:
        small.put_folder(sealed)
    assert caught.value.code == "adapter_too_large"
    assert (store.list(), leftovers(store), small.list(), leftovers(small)) == ([], [], [], [])


@pytest.mark.parametrize("digest", ["", "..", "../../etc", "A" * 64, "0" * 63, f"{'0' * 64}\n", f"{'0' * 60}/../"])
def test_a_digest_that_is_none_reaches_no_path(store: ArtifactStore, digest: str) -> None:
    for call in (store.path, store.delete):
        with pytest.raises(Invalid) as caught:
            call(digest)
        assert caught.value.code == "bad_digest"


def test_a_packed_folder_unpacks_to_the_same_digest(store: ArtifactStore, sealed: Path) -> None:
    assert store.put_tar(tar.pack(sealed)) == folder_digest(sealed)
    with tarfile.open(fileobj=io.BytesIO(tar.pack(sealed))) as read:
        assert sorted(read.getnames()) == sorted(path.name for path in sealed.iterdir())


def test_archives_of_common_tools_unpack(store: ArtifactStore, sealed: Path) -> None:
    packed = subprocess.run(["tar", "-C", str(sealed), "-cf", "-", "."], capture_output=True, check=True).stdout
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w", format=tarfile.PAX_FORMAT) as made:
        made.add(sealed, arcname=".")
    assert store.put_tar(packed) == store.put_tar(held.getvalue()) == folder_digest(sealed)


@pytest.mark.parametrize(
    "members",
    [
        [(member("../a"), b"x")],
        [(member("/etc/a"), b"x")],
        [(member("sub/a"), b"x")],
        [(member(".."), b"x")],
        [(member("a\nb"), b"x")],
        [(member("a", tarfile.SYMTYPE, "/etc/passwd"), b"")],
        [(member("a", tarfile.LNKTYPE, "/etc/passwd"), b"")],
        [(member("a", tarfile.FIFOTYPE), b"")],
        [(member("a", tarfile.CHRTYPE), b"")],
        [(member("sub", tarfile.DIRTYPE), b"")],
        [(member("a"), b"x"), (member("./a"), b"y")],
        [(member("n" * 150), b"x")],
    ],
)
def test_an_archive_with_more_than_plain_files_is_refused(
    store: ArtifactStore, members: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    with pytest.raises(Invalid) as caught:
        store.put_tar(archive(*members))
    assert caught.value.code == "adapter_unsafe_file"
    assert leftovers(store) == []


def test_too_many_files_or_bytes_are_refused(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "artifacts", max_bytes=1000)
    for members in ([(member("a"), b"x" * 1001)], [(member(f"f{n}"), b"") for n in range(300)]):
        with pytest.raises(Invalid) as caught:
            store.put_tar(archive(*members))
        assert caught.value.code == "adapter_too_large"


@settings(max_examples=150, deadline=None, database=None)
@given(st.data())
def test_a_mutated_archive_raises_nothing_but_invalid(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    raw = bytearray(archive((member("a.json"), b"{}"), (member("b" * 99), b"x" * 600)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, 2600))
        raw[at : at + 2] = data.draw(st.binary(max_size=4))
    if data.draw(st.booleans()):
        head = bytearray(raw[:512])
        head[148:156] = b" " * 8
        raw[148:156] = b"%06o\0 " % sum(head)
    folder = tmp_path_factory.mktemp("fuzz")
    try:
        tar.unpack(bytes(raw), folder, "adapter", max_bytes=10_000)
    except Invalid as error:
        assert error.code.startswith("adapter_")
    assert all(path.is_file() and not path.is_symlink() for path in folder.iterdir())
