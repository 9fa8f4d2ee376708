"""The one place where error kinds become gRPC and HTTP statuses, and gRPC statuses become error kinds again.

Kind, code, message and retry delay survive a hop as `google.rpc.Status` with ErrorInfo and RetryInfo (AIP-193).
"""

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2

from catena.kit.errors import CatenaError, Conflict, Denied, Exhausted, Invalid, Late, Missing, Unavailable

DOMAIN = "catena"
DETAILS_KEY = "grpc-status-details-bin"
BAD_TOKEN = "bad_token"
MESSAGE_CHARS = 4000
SUMMARY_CHARS = 400

_KINDS: tuple[tuple[type[CatenaError], grpc.StatusCode, int], ...] = (
    (Invalid, grpc.StatusCode.INVALID_ARGUMENT, 400),
    (Missing, grpc.StatusCode.NOT_FOUND, 404),
    (Conflict, grpc.StatusCode.ABORTED, 409),
    (Exhausted, grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
    (Unavailable, grpc.StatusCode.UNAVAILABLE, 503),
    (Late, grpc.StatusCode.DEADLINE_EXCEEDED, 504),
    (Denied, grpc.StatusCode.PERMISSION_DENIED, 403),
)
_KIND_OF_CODE: dict[grpc.StatusCode, type[CatenaError]] = {code: kind for kind, code, _ in _KINDS} | {
    grpc.StatusCode.UNAUTHENTICATED: Denied,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.FAILED_PRECONDITION: Conflict,
    grpc.StatusCode.OUT_OF_RANGE: Invalid,
    grpc.StatusCode.CANCELLED: Unavailable,
}


KINDS = tuple(kind for kind, _, _ in _KINDS)


def kind_of(error: CatenaError) -> type[CatenaError]:
    """The kind of `error`, whatever subclass of it a room raised; CatenaError itself when it has none."""
    return next((kind for kind in KINDS if isinstance(error, kind)), CatenaError)


def http_status(error: CatenaError) -> int:
    """The HTTP status of an error's kind; 500 for an error without a kind."""
    return next((status for kind, _, status in _KINDS if isinstance(error, kind)), 500)


def grpc_status(error: CatenaError) -> grpc.StatusCode:
    """The gRPC status of an error's kind; INTERNAL for an error without a kind."""
    if error.code == BAD_TOKEN:
        return grpc.StatusCode.UNAUTHENTICATED
    return next((code for kind, code, _ in _KINDS if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


def summary(error: CatenaError) -> str:
    """What goes into the plain `grpc-message`; the whole message travels in the details."""
    return error.message[:SUMMARY_CHARS]


def details(error: CatenaError) -> bytes:
    """The error as a serialised `google.rpc.Status` for `grpc-status-details-bin`."""
    number = getattr(code_pb2, grpc_status(error).name)
    status = status_pb2.Status(code=number, message=error.message[:MESSAGE_CHARS])
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.code, domain=DOMAIN))
    if error.retry_after_s > 0:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        status.details.add().Pack(retry)
    encoded: bytes = status.SerializeToString()
    return encoded


def from_details(code: grpc.StatusCode, raw: bytes) -> CatenaError | None:
    """The error that a Catena room put into `grpc-status-details-bin`; None when the bytes are from elsewhere."""
    status = status_pb2.Status.FromString(raw)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        if not detail.Unpack(info):
            detail.Unpack(retry)
    if info.domain != DOMAIN:
        return None
    kind = _KIND_OF_CODE.get(code, CatenaError)
    return kind(status.message, code=info.reason, retry_after_s=retry.retry_delay.ToNanoseconds() / 1e9)


def from_rpc(error: grpc.aio.AioRpcError, *, verb: str, address: str) -> CatenaError:
    """The error kind behind a failed gRPC call; `verb` (`router.recommend`) and `address` name the peer in messages."""
    code = error.code()
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            found = from_details(code, value)
            if found is not None:
                return found
    text = error.details() or code.name
    if code is grpc.StatusCode.UNAVAILABLE:
        cure = f"is {verb.partition('.')[0]} running?"
        return Unavailable(f"{verb}: no answer from {address} ({text}); {cure}", retry_after_s=1.0)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Late(f"{verb} did not answer before the deadline")
    if code is grpc.StatusCode.CANCELLED:
        return Unavailable(f"{verb}: the server at {address} gave the call up; try again", retry_after_s=1.0)
    kind = _KIND_OF_CODE.get(code, CatenaError)
    return kind(f"{verb}: {text}", code="" if kind is not CatenaError else code.name.lower())


def expected(error: BaseException) -> CatenaError | None:
    """The CatenaError that `error` is, or that a task group wrapped; None when any part of it is something else."""
    if isinstance(error, CatenaError):
        return error
    if isinstance(error, BaseExceptionGroup):
        found = [expected(part) for part in error.exceptions]
        return found[0] if all(found) else None
    return None


def verb_of(method: str) -> str:
    """`/catena.api.router.v1.RouterService/GetStats` as `router.get_stats`; also the name of the call's span."""
    service, _, name = method.lstrip("/").partition("/")
    parts = service.split(".")
    versioned = len(parts) >= 3 and parts[-2].startswith("v") and parts[-2][1:].rstrip("alphbet0123456789") == ""
    room = parts[-3] if versioned else parts[0].lower()
    snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
    return f"{room}.{snake.lstrip('_')}"
