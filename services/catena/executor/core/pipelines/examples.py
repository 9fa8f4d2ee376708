"""Pipelines that come with the executor, for tenant `shared`: to be used as they are, or copied.

Those that need a chat model take its name from the parameter `model`.
"""

from catena.executor.core.steps import Pipeline, Step

_CLEAN = Step(
    name="clean", type="preprocess", config={"operations": ["remove_html", "collapse_spaces", {"truncate": 4000}]}
)
_ENTITIES = {"type": "object", "properties": {"entities": {"type": "array"}}, "required": ["entities"]}

EXAMPLES = (
    Pipeline(
        name="sentiment",
        description="Positive, negative or neutral, by nearness to examples; needs the embedding model alone.",
        steps=(
            _CLEAN,
            Step(
                name="mood",
                type="model",
                config={
                    "kind": "classification",
                    "labels": {
                        "positive": [
                            "I love it, it is great.",
                            "A wonderful experience!",
                            "Very happy with this.",
                        ],
                        "negative": ["I hate it, it is terrible.", "What a disappointment.", "Very unhappy with this."],
                        "neutral": ["It is what it is.", "The parcel is blue.", "The meeting is at noon."],
                    },
                },
            ),
        ),
    ),
    Pipeline(
        name="content-moderation",
        description="Whether a text is fit to be shown, by nearness to examples; needs the embedding model alone.",
        steps=(
            _CLEAN,
            Step(
                name="kind",
                type="model",
                config={
                    "kind": "classification",
                    "labels": {
                        "harassment": ["You are an idiot and everybody hates you.", "Shut up, you worthless fool."],
                        "violence": ["I am going to hurt you badly.", "They should all be killed."],
                        "self-harm": ["I want to end my life.", "I am going to hurt myself tonight."],
                        "fine": [
                            "Thank you for your help.",
                            "When does the shop open?",
                            "Here is the report you wanted.",
                        ],
                    },
                },
            ),
            Step(
                name="allowed",
                type="postprocess",
                config={"input": "{kind.label}", "operations": [{"map": {"fine": True, "*": False}}]},
            ),
            Step(name="verdict", type="transform", config={"value": {"allowed": "{allowed}", "kind": "{kind.label}"}}),
        ),
    ),
    Pipeline(
        name="named-entities",
        description="People, places and organisations in a text, as JSON, by the chat model of parameter `model`.",
        steps=(
            _CLEAN,
            Step(
                name="find",
                type="model",
                config={
                    "model": "{parameters.model}",
                    "system": 'List the people, places and organisations in the text as JSON: {"entities": '
                    '[{"text": "...", "type": "person"}]}. Reply with the JSON alone.',
                    "prompt": "{clean}",
                    "temperature": 0.0,
                    "json_schema": _ENTITIES,
                },
            ),
            Step(name="entities", type="transform", config={"value": "{find.entities}"}),
        ),
    ),
    Pipeline(
        name="recommend",
        description="A recommendation from the feature group `profile` of a user, by the model of parameter `model`.",
        steps=(
            Step(
                name="profile",
                type="feature",
                config={"entity_type": "user", "entity_id": "{data.user_id}", "group": "profile"},
            ),
            Step(
                name="suggest",
                type="model",
                config={
                    "model": "{parameters.model}",
                    "system": "Recommend one thing to this user, in one sentence, from what is known of them.",
                    "prompt": "{profile.values}",
                    "temperature": 0.0,
                },
            ),
        ),
    ),
    Pipeline(
        name="recommend-from-features",
        description="What suits a user best, from the feature group `profile`, by the model of feature vectors of "
        "parameter `model`.",
        steps=(
            Step(
                name="profile",
                type="feature",
                config={"entity_type": "user", "entity_id": "{data.user_id}", "group": "profile"},
            ),
            Step(
                name="ranked",
                type="model",
                config={"kind": "prediction", "model": "{parameters.model}", "input": "{profile.vector}", "top": 3},
            ),
        ),
    ),
)
