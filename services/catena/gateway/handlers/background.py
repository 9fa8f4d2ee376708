"""Runs in the background over HTTP: submitted with a webhook or without, watched as they go."""

from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from catena.api.executor.v1 import executor_pb2
from catena.gateway.core.keys import Key
from catena.gateway.handlers import openai
from catena.gateway.handlers.asking import Asking
from catena.gateway.handlers.exchange import Reader, json_response
from catena.gateway.handlers.passage import message_plain
from catena.gateway.handlers.questions import questions_of
from catena.gateway.handlers.routes import Entry
from catena.gateway.handlers.watching import watch
from catena.gateway.handlers.webhooks import ENDED, WebhookBody, Webhooks
from catena.kit.errors import Invalid


class RunBody(openai.ChatBody, frozen=True, kw_only=True):
    """The body of /v1/runs: a chat completion's, and where to post that it ended."""

    webhook: WebhookBody | None = None


def run_entries(runs: "RunRoutes") -> list[Entry]:
    """Where they are."""
    example = {"model": "auto", "messages": [{"role": "user", "content": "Say hello."}]}
    return [
        Entry(
            verb="POST",
            path="/v1/runs",
            says="accepts a chat completion for the background",
            handler=runs.submit,
            takes=RunBody,
            example=example,
            status=202,
        ),
        Entry(
            verb="GET",
            path="/v1/runs/{id}/events",
            says="a run as it goes",
            handler=runs.watch,
            media="text/event-stream",
        ),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRoutes:
    """Submits and watches; polling and cancelling pass straight through."""

    asking: Asking
    reader: Reader
    webhooks: Webhooks

    async def submit(self, request: Request, key: Key) -> Response:
        """A chat completion, or a pipeline, for the background: 202 and the run, once it and its webhook are stored."""
        body = await self.reader.read(request, RunBody)
        if body.stream:
            raise Invalid(
                "a background run is not streamed; leave `stream` out and watch the run", code="bad_parameter"
            )
        if body.webhook is not None:
            self.webhooks.check(body.webhook)
        (question,) = questions_of(request, key, body, self.asking.world.new_id)
        run = await self.asking.submit(question, request.headers.get("idempotency-key", ""))
        told = message_plain(executor_pb2.SubmitRunResponse(run=run))
        if body.webhook is not None:
            told["webhook"] = await self._promise(body.webhook, key.tenant, run)
        return json_response(told, status=202, headers={"location": f"/v1/runs/{run.id}"})

    async def watch(self, request: Request, _: Key) -> Response:
        """A run as it goes."""
        return await watch(self.asking.executor, request)

    async def _promise(self, wanted: WebhookBody, tenant: str, run: executor_pb2.Run) -> dict[str, str]:
        kept = await self.webhooks.promise(wanted, tenant, run)
        # A run may end before its webhook is stored; its event finds nothing then.
        now = (await self.asking.executor.GetRun(executor_pb2.GetRunRequest(id=run.id))).run
        if now.state in ENDED:
            await self.webhooks.ended(now.id, now.state, now.result.execution_id)
        return msgspec.to_builtins(WebhookBody(url=kept.url, secret=kept.secret))  # type: ignore[no-any-return]
