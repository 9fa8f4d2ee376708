"""Routes for administrators: make, list and revoke API keys. A secret is shown once, when it is made."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from catena.gateway.core.keys import Gateway, Key, digest_of, new_secret
from catena.gateway.handlers.exchange import Reader, json_response
from catena.gateway.handlers.routes import Entry
from catena.kit.caller import Caller
from catena.kit.clock import World
from catena.kit.errors import Denied, Invalid

PerMinute = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class KeyBody(msgspec.Struct, frozen=True, kw_only=True):
    """What a new key may do; limits of 0 mean none."""

    tenant: str
    role: str = "user"
    name: str = ""
    budget_usd: Annotated[float, msgspec.Meta(ge=0.0)] = 0.0
    requests_per_minute: PerMinute = 0
    tokens_per_minute: PerMinute = 0


def key_entries(keys: "KeyRoutes") -> list[Entry]:
    """Where they are."""
    return [
        Entry(verb="GET", path="/v1/keys", says="lists API keys, for role admin", handler=keys.list),
        Entry(
            verb="POST",
            path="/v1/keys",
            says="makes an API key, for role admin",
            handler=keys.create,
            takes=KeyBody,
            example={"tenant": "default", "requests_per_minute": 60},
        ),
        Entry(verb="DELETE", path="/v1/keys/{id}", says="revokes an API key, for role admin", handler=keys.revoke),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRoutes:
    """`save` commits a key and tells the other replicas."""

    world: World
    gateway: Gateway
    reader: Reader
    save: Callable[[Key], Awaitable[None]]

    async def list(self, _: Request, key: Key) -> Response:
        """Every key of the caller's tenant; an administrator of `shared` sees all."""
        admin(key)
        seen = [other for other in self.gateway.everyone() if key.tenant in ("shared", other.tenant)]
        return json_response({"data": [self._json(other) for other in seen]})

    async def create(self, request: Request, key: Key) -> Response:
        """A new key."""
        admin(key)
        body = await self.reader.read(request, KeyBody)
        if key.tenant not in ("shared", body.tenant):
            raise Denied(f"a key of tenant {key.tenant!r} makes no keys for {body.tenant!r}", code="not_your_tenant")
        if body.role not in ("user", "admin"):
            raise Invalid(f"unknown role {body.role!r}; use user or admin", code="bad_role")
        Caller(body.tenant)  # refuses a tenant that no call could be made for
        secret = new_secret()
        made = Key(
            id=self.world.new_id(),
            digest=digest_of(secret),
            created_s=self.world.clock.now(),
            **{name: getattr(body, name) for name in KeyBody.__struct_fields__},
        )
        await self.save(made)
        self.gateway.put(made)
        return json_response({**self._json(made), "key": secret})

    async def revoke(self, request: Request, key: Key) -> Response:
        """Stop admitting a key."""
        admin(key)
        gone = self.gateway.revoke(request.path_params["id"])
        await self.save(gone)
        return json_response(self._json(gone))

    def _json(self, key: Key) -> dict[str, Any]:
        told = {name: getattr(key, name) for name in ("id", *KeyBody.__struct_fields__, "active", "created_s")}
        return {**told, "spent_usd": self.gateway.spent_usd(key.id)}


def admin(key: Key) -> None:
    """Raises Denied unless the key is an administrator's."""
    if key.role != "admin":
        raise Denied("this needs a key in role admin", code="not_admin")
