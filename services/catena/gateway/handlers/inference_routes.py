"""Where the Open Inference Protocol is served."""

from catena.gateway.handlers.inference import IndexBody, InferBody, Inference, RepositoryBody
from catena.gateway.handlers.routes import Entry

TENSOR = {"name": "input", "shape": [1], "datatype": "BYTES", "data": ["hello"]}


def inference_entries(to: Inference) -> list[Entry]:
    """All routes; names of models may hold slashes."""
    one, repository = "/v2/models/{name:path}", "/v2/repository/models/{name:path}"
    return [
        Entry(verb="GET", path="/v2", says="who serves", handler=to.server),
        Entry(verb="GET", path="/v2/health/live", says="whether the gateway is up", open=to.live),
        Entry(verb="GET", path="/v2/health/ready", says="whether it serves", open=to.ready),
        Entry(verb="GET", path=f"{one}/ready", says="whether a model can be called", handler=to.model_ready),
        Entry(
            verb="POST",
            path=f"{one}/infer",
            says="a result a row of the inputs",
            handler=to.infer,
            takes=InferBody,
            example={"inputs": [TENSOR]},
        ),
        Entry(verb="GET", path=one, says="what a model takes and gives", handler=to.model),
        Entry(
            verb="POST",
            path="/v2/repository/index",
            says="every model with its state",
            handler=to.index,
            takes=IndexBody,
            gives={"type": "array"},
            example={"ready": True},
            optional_body=True,
        ),
        Entry(
            verb="POST",
            path=f"{repository}/load",
            says="makes a local model resident, for role admin",
            handler=to.load,
            takes=RepositoryBody,
            example={},
            optional_body=True,
        ),
        Entry(
            verb="POST",
            path=f"{repository}/unload",
            says="drains and frees it, for role admin",
            handler=to.unload,
            takes=RepositoryBody,
            example={},
            optional_body=True,
        ),
    ]
