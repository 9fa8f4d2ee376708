"""One folder as a tar in memory, packed and unpacked without the standard library's extractor.

Only regular files of the top level pass: no links, folders, devices, no names from extension headers, so that a name
can mean one thing only. Plain tar (ustar), no compression: what comes out is never larger than what came in.
"""

from collections.abc import Iterator
from pathlib import Path

from catena.artifacts.files import list_files, read_small
from catena.artifacts.refusal import Kind, refused

BLOCK = 512
MAX_MEMBERS = 256
# Keys of an extended header that would change what a member is; the rest (times, owners) is passed over.
TELLING = frozenset({b"path", b"linkpath", b"size"})


def unpack(data: bytes, into: Path, kind: Kind, *, max_bytes: int) -> None:
    """Write the files of a tar into an empty folder. Raises Refused for anything but plain files, or too many bytes."""
    seen: set[str] = set()
    total = 0
    for name, begin, size in _members(data, kind):
        total += size
        if total > max_bytes or len(seen) >= MAX_MEMBERS:
            raise refused(
                kind, "too_large", f"the archive holds over {max_bytes} bytes or {MAX_MEMBERS} files; send it in parts"
            )
        if name in seen:
            raise refused(kind, "unsafe_file", f"the archive holds {name!r} twice; pack it again")
        seen.add(name)
        with (into / name).open("xb") as file:
            file.write(memoryview(data)[begin : begin + size])


def pack(folder: Path, kind: Kind = "adapter") -> bytes:
    """The folder's files as a tar, the same bytes for the same files."""
    parts: list[bytes] = []
    for name, listed in list_files(folder, kind).items():
        raw = read_small(listed, listed.size, kind)
        parts += [_header(name, len(raw), kind), raw, bytes(-len(raw) % BLOCK)]
    return b"".join([*parts, bytes(2 * BLOCK)])


def _members(data: bytes, kind: Kind) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each regular file."""
    at = 0
    while at + BLOCK <= len(data):
        head = data[at : at + BLOCK]
        if not any(head):
            return
        at += BLOCK
        _check_sum(head, at, kind)
        name, size, what = _name(head), _size(head, kind), head[156:157]
        if size > len(data) - at:
            raise refused(kind, "unsafe_file", f"archive member {name!r} is cut: {size} bytes, {len(data) - at} left")
        if what in (b"x", b"g"):
            _check_extension(data[at : at + size], kind)
        elif what == b"5" and name in (".", "./"):
            pass
        elif what in (b"0", b"\0"):
            yield _plain_name(name, kind), at, size
        else:
            raise refused(kind, "unsafe_file", f"archive member {name!r} has type {what!r}; only regular files pass")
        at += size + (-size % BLOCK)
    raise refused(kind, "unsafe_file", "the archive has no end mark; it is cut or no plain tar (compressed?)")


def _check_sum(head: bytes, at: int, kind: Kind) -> None:
    wanted = _octal(head[148:156], kind)
    if sum(head) - sum(head[148:156]) + 8 * ord(" ") != wanted:
        raise refused(kind, "unsafe_file", f"the archive's header at byte {at - BLOCK} is damaged or no plain tar")


def _check_extension(raw: bytes, kind: Kind) -> None:
    """Pass over an extended header (POSIX.1-2001 pax, records of `length key=value`) unless it renames or resizes."""
    at = 0
    while at < len(raw) and raw[at : at + 1] != b"\0":
        digits, _, _ = raw[at : at + 20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = raw[at : at + length]
        key = record[len(digits) + 1 :].partition(b"=")[0]
        if length <= len(digits) or len(record) != length or key in TELLING or key.startswith(b"GNU."):
            raise refused(
                kind, "unsafe_file", f"the archive's extended header sets {key[:40]!r}; pack short, plain names"
            )
        at += length


def _plain_name(name: str, kind: Kind) -> str:
    plain = name.removeprefix("./")
    if not plain or plain in (".", "..") or "/" in plain or "\\" in plain or not plain.isprintable():
        raise refused(
            kind, "unsafe_file", f"archive member {name!r} is no plain file name; pack with `tar -C FOLDER .`"
        )
    return plain


def _name(head: bytes) -> str:
    name, prefix = (
        part.partition(b"\0")[0].decode("utf-8", "backslashreplace") for part in (head[:100], head[345:500])
    )
    return f"{prefix}/{name}" if prefix and head[257:263] == b"ustar\0" else name


def _size(head: bytes, kind: Kind) -> int:
    return _octal(head[124:136], kind)


def _octal(field: bytes, kind: Kind) -> int:
    text = field.strip(b" \0")
    if not text or not all(byte in b"01234567" for byte in text):
        raise refused(kind, "unsafe_file", f"the archive's header holds {field!r} for a number; it is no plain tar")
    return int(text, 8)


def _header(name: str, size: int, kind: Kind) -> bytes:
    raw = name.encode()
    if len(raw) > 100 or size >= 8**11:
        raise refused(
            kind, "too_large", f"{name!r} with {size} bytes does not fit a plain tar; import the folder instead"
        )
    head = bytearray(BLOCK)
    fields = {0: raw, 100: b"0000644\0", 108: b"0000000\0", 116: b"0000000\0", 124: b"%011o\0" % size}
    fields |= {136: b"%011o\0" % 0, 148: b" " * 8, 156: b"0", 257: b"ustar\x0000"}
    for at, value in fields.items():
        head[at : at + len(value)] = value
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)
