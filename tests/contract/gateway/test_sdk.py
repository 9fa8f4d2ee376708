"""The SDK and the command against a real gateway over scripted rooms."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from catena.kit.errors import CatenaError, Denied, Exhausted, Missing, Unavailable
from catena.sdk.client import AsyncCatena, Catena
from catena.sdk.command import app
from tests.contract.gateway.rooms import Behind, gateway_with_rooms

pytestmark = pytest.mark.contract


@pytest.fixture
async def behind(tmp_path: Path) -> AsyncIterator[Behind]:
    async with gateway_with_rooms(tmp_path) as running:
        yield running


async def with_client(behind: Behind, use: Callable[[Catena], Any], key: str = "") -> Any:
    """What `use` makes of the client, in a thread as programs without a loop would have it."""

    def work() -> Any:
        with Catena(behind.grpc, key=key or behind.key) as catena:
            return use(catena)

    return await asyncio.to_thread(work)


async def test_code_without_a_loop_chats_and_gets_the_account(behind: Behind) -> None:
    answer = await with_client(behind, lambda catena: catena.chat("one two three", model="base", task="count"))
    assert (answer.text, answer.model) == ("one two three", "base")
    assert [answer.execution_id] == list(behind.executor.records)
    assert (answer.cost_usd, answer.duration_ms) == (0.001, 5.0)
    assert [stage.model for stage in answer.finished.stages] == ["base"]
    assert behind.executor.asked[0].context.task == "count"
    assert behind.executor.tenants == ["default"]
    assert behind.router.asked == []


async def test_messages_and_sampling_travel_as_they_were_given(behind: Behind) -> None:
    turns = [{"role": "system", "content": "be short"}, {"role": "user", "content": "hi"}]
    wanted = {"temperature": 0.5, "max_tokens": 7}
    await with_client(behind, lambda catena: catena.chat(turns, sampling=wanted))
    (asked,) = behind.executor.asked
    assert [(m.role, m.content) for m in asked.request.messages] == [("system", "be short"), ("user", "hi")]
    assert (asked.request.sampling.temperature, asked.request.sampling.max_tokens) == (0.5, 7)
    assert len(behind.router.asked) == 1


async def test_code_without_a_loop_streams_word_by_word(behind: Behind) -> None:
    words = await with_client(behind, lambda catena: list(catena.stream("one two three", model="base")))
    assert words == ["one", " two", " three"]


async def test_leaving_a_stream_early_cancels_it_in_the_executor(behind: Behind) -> None:
    def first_word(catena: Catena) -> str:
        words = catena.stream("one two three", model="slow")
        word = next(words)
        words.close()  # type: ignore[attr-defined]
        return word

    assert await with_client(behind, first_word) == "one"
    await asyncio.wait_for(behind.executor.cancelled.wait(), 30)


async def test_a_stream_that_breaks_off_raises_after_what_came(behind: Behind) -> None:
    def read(catena: Catena) -> list[str]:
        words = []
        with pytest.raises(CatenaError) as broke:
            for word in catena.stream("one two", model="cut"):
                words.append(word)  # noqa: PERF402 - what came before the error counts
        assert broke.value.code == "stream_cut"
        return words

    assert await with_client(behind, read) == ["one"]


async def test_feedback_embeddings_and_predictions_come_back(behind: Behind) -> None:
    def use(catena: Catena) -> tuple[str, list[list[float]], Any]:
        answer = catena.chat("one", model="base")
        told = catena.feedback(answer.execution_id, score=0.0, correction="better")
        return told, catena.embed(["a", "bcd"]), catena.predict("base", {"a": [1, None]}, top=2)

    assert await with_client(behind, use) == ("f-1", [[1.0, 0.5], [3.0, 0.5]], {"a": [1.0, None]})
    (heard,) = behind.learner.heard
    assert [heard.execution_id] == list(behind.executor.records)
    assert (heard.correction, heard.HasField("score"), heard.score) == ("better", True, 0.0)


async def test_errors_are_the_kinds_of_the_house(behind: Behind) -> None:
    def ask(model: str) -> Callable[[Catena], Any]:
        return lambda catena: catena.chat("hi", model=model)

    with pytest.raises(Missing) as missing:
        await with_client(behind, ask("nothing"))
    assert missing.value.code == "unknown_model"
    with pytest.raises(Exhausted) as busy:
        await with_client(behind, ask("busy"))
    assert busy.value.retry_after_s == 3
    with pytest.raises(Denied):
        await with_client(behind, ask("base"), key="sk-wrong")


async def test_one_client_serves_many_threads(behind: Behind) -> None:
    with Catena(behind.grpc, key=behind.key) as catena:
        asked = (asyncio.to_thread(catena.chat, f"number {n}", model="base") for n in range(8))
        answers = await asyncio.gather(*asked)
    assert [answer.text for answer in answers] == [f"number {n}" for n in range(8)]


async def test_a_client_that_is_not_open_says_how_to_open_it(behind: Behind) -> None:
    with pytest.raises(Unavailable, match="async with"):
        await AsyncCatena(behind.grpc, key=behind.key).chat("hi")


async def typed(home: Path, *arguments: str, **more: Any) -> Result:
    """The command as typed beside this platform."""
    runner = CliRunner(env={"CATENA__HOME": str(home), "COLUMNS": "200", "NO_COLOR": "1"})
    return await asyncio.to_thread(runner.invoke, app, list(arguments), **more)


async def test_the_command_chats_and_shows_what_ran(behind: Behind, tmp_path: Path) -> None:
    told = await typed(tmp_path, "chat", "one [/two] three", "--model", "base", "--task", "count")
    assert told.exit_code == 0
    assert told.stdout.splitlines()[0] == "one [/two] three"
    assert "sequential, 5 ms, 0.00100000 USD" in told.stdout
    assert f"execution {next(iter(behind.executor.records))}" in told.stdout
    assert behind.executor.asked[0].context.task == "count"


async def test_the_command_reads_a_question_from_its_input(behind: Behind, tmp_path: Path) -> None:
    told = await typed(tmp_path, "--json", "chat", "-", "--model", "base", input="from a pipe")
    assert told.exit_code == 0
    assert json.loads(told.stdout)["choices"][0]["message"]["content"] == "from a pipe"


async def test_the_command_lists_models(behind: Behind, tmp_path: Path) -> None:
    told = await typed(tmp_path, "--json", "models")
    assert [(row["model"], row["parent"], row["status"]) for row in json.loads(told.stdout)] == [
        ("base", "", ""),
        ("base@code", "base", ""),
        ("broken", "", "no folder at nope; correct it"),
    ]
    assert "base@code" in (await typed(tmp_path, "models")).stdout


async def test_the_command_passes_a_rooms_complaint_on(behind: Behind, tmp_path: Path) -> None:
    told = await typed(tmp_path, "chat", "hi", "--model", "nothing")
    assert told.exit_code == 1
    assert told.stderr == "unknown_model unknown model 'nothing'; list them with GET /v1/models\n"


async def test_the_command_says_when_there_is_no_broker(tmp_path: Path) -> None:
    (tmp_path / "catena.yaml").write_text("bus: {url: 'nats://127.0.0.1:1'}")
    told = await typed(tmp_path, "--config", str(tmp_path / "catena.yaml"), "events", "--all")
    assert told.exit_code == 1
    assert told.stderr.startswith("unavailable no connection to the broker")
