"""vLLM's routes that load and unload adapters under plain names.

Bodies and answers are those of vLLM 0.33: success is a line of text, an error `{"error": {message, type, param, code}}`
with the status as code; the flat fields of older releases stand beside it, for clients that read those (KubeAI).
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from catena.api.adapters.v1 import adapters_pb2, adapters_pb2_grpc
from catena.api.executor.v1 import executor_pb2, executor_pb2_grpc
from catena.gateway.core.keys import Key
from catena.gateway.handlers.exchange import Reader, json_response
from catena.gateway.handlers.keys import admin
from catena.gateway.handlers.lora_names import LoraNames
from catena.gateway.handlers.routes import Entry
from catena.kit.errors import CatenaError, Conflict, Denied, Invalid, Missing
from catena.kit.wire import http_status

TYPES: tuple[tuple[type[CatenaError], str], ...] = (
    (Invalid, "InvalidUserInput"),
    (Conflict, "InvalidUserInput"),
    (Missing, "NotFoundError"),
    (Denied, "PermissionDeniedError"),
)


class LoadBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of /v1/load_lora_adapter."""

    lora_name: str = ""
    lora_path: str = ""
    base_model_name: str | None = None
    load_inplace: bool = False


class UnloadBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of /v1/unload_lora_adapter. `lora_int_id`, which old clients send, is passed over."""

    lora_name: str = ""


def lora_entries(lora: "LoraRoutes") -> list[Entry]:
    """Where they are."""
    return [
        Entry(
            verb="POST",
            path="/v1/load_lora_adapter",
            says="serves an adapter under a plain name, for role admin",
            handler=lora.load,
            takes=LoadBody,
            example={"lora_name": "code", "lora_path": "code"},
            media="text/plain",
        ),
        Entry(
            verb="POST",
            path="/v1/unload_lora_adapter",
            says="forgets a plain name, for role admin",
            handler=lora.unload,
            takes=UnloadBody,
            example={"lora_name": "code"},
            media="text/plain",
        ),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraRoutes:
    """Load and unload, for administrators."""

    adapters: "adapters_pb2_grpc.AdaptersServiceAsyncStub"
    executor: "executor_pb2_grpc.ExecutorServiceAsyncStub"
    names: LoraNames
    reader: Reader

    async def load(self, request: Request, key: Key) -> Response:
        """Take an adapter in through the gate and serve it as `lora_name`."""
        return await self._answered(lambda: self._load(request, key))

    async def unload(self, request: Request, key: Key) -> Response:
        """Drain and free the adapter behind `lora_name`, and forget the name."""
        return await self._answered(lambda: self._unload(request, key))

    async def _load(self, request: Request, key: Key) -> str:
        admin(key)
        body = await self.reader.read(request, LoadBody)
        if not body.lora_name or not body.lora_path:
            raise Invalid("Both 'lora_name' and 'lora_path' must be provided.", code="bad_request")
        await self._check_free(body.lora_name)
        wanted = adapters_pb2.RegisterAdapterRequest(
            rooted_path=body.lora_path,
            serve_as=body.lora_name,
            replace=body.load_inplace,
            base=body.base_model_name or "",
        )
        try:
            await self.adapters.RegisterAdapter(wanted)
        except Conflict as error:
            if error.code == "already_loaded":
                # vLLM's words: clients look for them to know that all is well.
                raise Invalid(
                    f"The lora adapter '{body.lora_name}' has already been loaded. If you want to load the adapter in "
                    "place, set 'load_inplace' to True.",
                    code=error.code,
                ) from None
            raise
        self.names.forget()
        return f"Success: LoRA adapter '{body.lora_name}' added successfully."

    async def _unload(self, request: Request, key: Key) -> str:
        admin(key)
        body = await self.reader.read(request, UnloadBody)
        if not body.lora_name:
            raise Invalid("'lora_name' needs to be provided to unload a LoRA adapter.", code="bad_request")
        try:
            await self.adapters.Unload(adapters_pb2.UnloadRequest(served_name=body.lora_name))
        except Missing as error:
            raise Missing(f"The lora adapter '{body.lora_name}' cannot be found.", code=error.code) from None
        finally:
            self.names.forget()
        return f"Success: LoRA adapter '{body.lora_name}' removed successfully."

    async def _check_free(self, name: str) -> None:
        """Raises Invalid where the name is that of a model, which it would hide."""
        catalogue = await self.executor.ListModels(executor_pb2.ListModelsRequest())
        if any(model.name == name for model in catalogue.models):
            raise Invalid(f"{name!r} is a model already; give the adapter another name", code="bad_served_name")

    async def _answered(self, work: Callable[[], Awaitable[str]]) -> Response:
        try:
            return PlainTextResponse(await work())
        except CatenaError as error:
            return json_response(error_json(error), status=http_status(error))


def error_json(error: CatenaError) -> dict[str, Any]:
    """VLLM's error, with our own code as `reason`."""
    told = {
        "message": error.message,
        "type": next((name for kind, name in TYPES if isinstance(error, kind)), "InternalServerError"),
        "param": None,
        "code": http_status(error),
    }
    return {"object": "error", **told, "error": {**told, "reason": error.code}}
