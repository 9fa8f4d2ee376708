"""Pipelines as YAML, over gRPC: checked before they are stored, their templates run in the sandbox."""

from pathlib import Path

import pytest

from catena.api.executor.v1 import executor_pb2 as pb
from catena.executor.handlers.values import plain, to_value
from catena.kit.errors import Invalid
from tests.contract.executor.rooms import around

LETTER = """
name: letter
description: A letter out of what is known of somebody.
steps:
  - {name: who, type: feature, config: {entity_type: user, entity_id: "{data.user}", group: profile}}
  - name: text
    type: template
    config:
      template: |
        Dear {{ data.user | title }},
        {% if who["values"].tier == "gold" %}welcome back.{% else %}welcome.{% endif %}
  - {name: send, type: model, config: {model: large}}
"""


async def test_a_pipeline_of_templates_is_stored_as_yaml_and_runs(tmp_path: Path) -> None:
    async with around(tmp_path) as room:
        stored = (await room.stub.PutPipeline(pb.PutPipelineRequest(yaml=LETTER))).pipeline
        assert (stored.name, stored.version, [one.type for one in stored.steps]) == (
            "letter",
            1,
            ["feature", "template", "model"],
        )
        assert (await room.stub.PutPipeline(pb.PutPipelineRequest(yaml=LETTER))).pipeline.version == 2
        asked = pb.PredictRequest(model_id="pipeline:letter", data=to_value({"user": "ada"}))
        told = await room.stub.Predict(asked)
    assert plain(told.result) == "DEAR ADA,\nWELCOME BACK."
    assert plain(told.steps[1].output) == "Dear Ada,\nwelcome back."
    assert all(one.duration_ms > 0 for one in told.steps)


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (pb.PutPipelineRequest(yaml=LETTER.replace("{% endif %}", "")), "step 'text'.*line"),
        (pb.PutPipelineRequest(yaml=LETTER.replace("who[", "whom[")), "uses 'whom'"),
        (pb.PutPipelineRequest(yaml="name: ["), "no YAML"),
        (pb.PutPipelineRequest(), "either as fields or as yaml"),
        (pb.PutPipelineRequest(yaml=LETTER, pipeline=pb.Pipeline(name="x")), "either as fields or as yaml"),
    ],
)
async def test_one_that_could_not_run_is_refused(tmp_path: Path, request_: pb.PutPipelineRequest, why: str) -> None:
    async with around(tmp_path) as room:
        with pytest.raises(Invalid, match=why) as caught:
            await room.stub.PutPipeline(request_)
        assert caught.value.code == "bad_pipeline"
        assert not [
            one for one in (await room.stub.ListPipelines(pb.ListPipelinesRequest())).pipelines if one.name == "letter"
        ]
