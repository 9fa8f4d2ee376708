"""What the chart refuses, and that the refusal names the key and its cure."""

import helm_python
import pytest

from tests.chart.manifests import POSTGRES, Values, render

pytestmark = pytest.mark.chart
SCHEMA: dict[str, Values] = {
    "replica": {"rooms": {"router": {"replica": 2}}},
    "replicas": {"rooms": {"router": {"replicas": -1}}},
    "roof": {"rooms": {"roof": {}}},
    "threshold": {"config": {"threshold": 0.85}},
    "profile": {"config": {"profile": "prod"}},
    "sample": {"config": {"telemetry": {"sample": 2}}},
    "memory": {"rooms": {"memory": {"resources": {"requests": {"memory": "lots"}}}}},
    "digest": {"rooms": {"router": {"image": {"digest": "latest"}}}},
    "resource": {"rooms": {"adapters": {"gpu": {"resource": "gpu"}}}},
    "url": {"sql": {"url": "mysql://db"}},
    "listen": {"listen": "localhost"},
    "price": {"config": {"models": [{"name": "m", "price": {"input": -1}}]}},
    "path": {"config": {"models": [{"name": "m", "paht": "/models/m"}]}},
    "type": {"rooms": {"gateway": {"service": {"type": "ExternalName"}}}},
    "operator": {"rooms": {"trainer": {"tolerations": [{"operator": "Exist"}]}}},
}
CHECKS: dict[str, Values] = {
    "set sql.url to use PostgreSQL": {"rooms": {"router": {"replicas": 2}}},
    "set replicas to 1": {**POSTGRES, "rooms": {"adapters": {"replicas": 2}}},
    "would cut streams": {"rooms": {"gateway": {"config": {"timeout_s": 600}}}},
    "set nats.enabled=true": {"nats": {"enabled": False}},
    "set nats.enabled=false": {"bus": {"url": "nats://broker"}},
    "set models.existingClaim": {"models": {"image": {"repository": ""}}},
}


@pytest.mark.parametrize("key", SCHEMA)
def test_the_schema_refuses_and_names_the_key(key: str) -> None:
    with pytest.raises(helm_python.HelmError, match=key if key != "path" else "paht"):
        render(SCHEMA[key])


@pytest.mark.parametrize("cure", CHECKS)
def test_values_that_cannot_work_together_are_refused_with_a_cure(cure: str) -> None:
    with pytest.raises(helm_python.HelmError, match=cure):
        render(CHECKS[cure])


def test_replicas_run_where_state_is_in_postgresql() -> None:
    render({**POSTGRES, "rooms": {"router": {"replicas": 3}, "gateway": {"replicas": 2}}})
