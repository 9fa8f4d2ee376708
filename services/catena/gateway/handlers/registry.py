"""A published folder of adapters over HTTP, in which other installations look for updates."""

from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from catena.gateway.core.keys import Key
from catena.gateway.handlers.keys import admin
from catena.kit.errors import Missing


@dataclass(frozen=True, slots=True)
class RegistryRoutes:
    """Serves the plain files of `folder` to administrators; empty: there is none."""

    folder: str

    async def get(self, request: Request, key: Key) -> Response:
        """A file, or a range of it; 304 where the client knows it already."""
        admin(key)
        name = str(request.path_params["name"])
        if not self.folder:
            told = "write one with `catena adapters publish FOLDER` and name it as gateway.registry"
            raise Missing(f"no registry is published here; {told}", code="no_registry")
        try:
            return await StaticFiles(directory=self.folder, check_dir=False).get_response(name, request.scope)
        except HTTPException:
            raise Missing(f"no {name[:200]!r} is published here; see index.json", code="not_published") from None
