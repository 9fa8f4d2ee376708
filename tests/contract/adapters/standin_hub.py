"""Speaks as much of a model hub's API as `huggingface_hub` needs to list repositories and to fetch their files."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web


class Hub:
    """`repositories` are folders by `org/name`; `log` has each path that was asked for."""

    def __init__(self) -> None:
        self.url = ""
        self.repositories: dict[str, Path] = {}
        self.log: list[str] = []
        self.key = ""

    @property
    def manifests(self) -> int:
        """How often a manifest was asked for."""
        return len([path for path in self.log if path.endswith("catena.json")])

    def revision(self, name: str) -> str:
        """A commit's name, which changes with the files."""
        hashed = hashlib.sha1()
        for path in sorted(self.repositories[name].iterdir()):
            hashed.update(path.name.encode() + path.read_bytes())
        return hashed.hexdigest()

    async def listed(self, request: web.Request) -> web.Response:
        self.log.append(request.path)
        author = request.query.get("author", "")
        return web.json_response([{"id": name} for name in self.repositories if name.startswith(f"{author}/")])

    async def info(self, request: web.Request) -> web.Response:
        name = f"{request.match_info['org']}/{request.match_info['name']}"
        self.log.append(request.path)
        if name not in self.repositories or self._denied(request):
            return web.json_response({"error": "Not found"}, status=404, headers={"X-Error-Code": "RepoNotFound"})
        files = sorted(self.repositories[name].iterdir())
        siblings = [{"rfilename": path.name, "size": path.stat().st_size} for path in files]
        return web.json_response({"id": name, "sha": self.revision(name), "siblings": siblings})

    async def file(self, request: web.Request) -> web.StreamResponse:
        name = f"{request.match_info['org']}/{request.match_info['name']}"
        self.log.append(request.path)
        path = self.repositories[name] / request.match_info["file"]
        tag = hashlib.sha1(path.read_bytes()).hexdigest()
        headers = {"X-Repo-Commit": self.revision(name), "ETag": f'"{tag}"'}
        return web.FileResponse(path, headers=headers)

    def _denied(self, request: web.Request) -> bool:
        return bool(self.key) and request.headers.get("Authorization", "") != f"Bearer {self.key}"


@asynccontextmanager
async def hub_serving() -> AsyncIterator[Hub]:
    hub = Hub()
    app = web.Application()
    app.router.add_get("/api/models", hub.listed)
    app.router.add_get("/api/models/{org}/{name}", hub.info)
    app.router.add_get("/api/models/{org}/{name}/revision/{revision}", hub.info)
    app.router.add_get("/{org}/{name}/resolve/{revision}/{file}", hub.file)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    hub.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield hub
    finally:
        await runner.cleanup()
