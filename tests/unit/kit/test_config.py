import json

from catena.kit.config import AuthConfig, BusConfig, House, SqlConfig, TelemetryConfig, redacted


def test_no_secret_is_printed_at_start() -> None:
    house = House(
        bus=BusConfig(url="nats://hidden@broker:4222"),
        sql=SqlConfig(url="postgresql://catena:hid/d@en@db:5432/catena"),
        auth=AuthConfig(service_token="hidden"),
        telemetry=TelemetryConfig(otlp_endpoint="http://collector:4317"),
    )
    told = redacted(house)
    assert "hid" not in json.dumps(told)
    assert told["bus"]["url"] == "nats://***@broker:4222"
    assert told["sql"]["url"].endswith("@db:5432/catena")
    assert told["telemetry"]["otlp_endpoint"] == "http://collector:4317"
