"""The port `Engine` as its process keeps it; transformers is the reference for every text."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from catena.adapters.core.work import AdapterSource, BaseSource, Done, Message, Piece, Sampling, Weights, Work
from catena.adapters.drivers.engine.client import ProcessEngine, open_engine
from catena.adapters.drivers.engine.frames import Settings, Ways
from catena.kit.errors import Exhausted, Invalid, Unavailable
from catena.kit.testing import eventually
from tests.contract.adapters.making import ALL, make_adapter, part_of

pytestmark = pytest.mark.asyncio(loop_scope="module")
MODELS = Path(__file__).parents[3] / "demo" / "models"
LARGE, SMALL = MODELS / "demo-large", MODELS / "demo-small"
QUESTIONS = ["upper: hello", "reverse: stone", "add 27+58", "sort: 5 2 9 1", "max: 4 8 2", "first: apple pear plum"]


@dataclass
class Bench:
    engine: ProcessEngine
    adapters: dict[str, Path]
    run: Path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("engine")
    adapters = {
        name: make_adapter(LARGE, folder / name, seed=seed, r=rank, lora_alpha=alpha)
        for name, seed, rank, alpha in (("a", 1, 8, 32.0), ("b", 2, 16, 64.0))
    }
    settings = Settings(socket=str(folder / "line.sock"), queue=16, max_batch=8)
    async with open_engine(settings, folder / "run") as engine:
        await furnish(engine, adapters)
        yield Bench(engine, adapters, folder / "run")


async def furnish(engine: ProcessEngine, adapters: dict[str, Path]) -> None:
    for name, folder in (("large", LARGE), ("small", SMALL)):
        await engine.load_base(BaseSource(name=name, folder=str(folder)))
    for name, folder in adapters.items():
        source = AdapterSource(weights=Weights(base="large", adapter=name), parts=(part_of(LARGE, folder),))
        assert (await engine.load_adapter(source)).bytes > 0


def work(text: str, *, base: str = "large", adapter: str = "", draft: str = "", **sampling: Any) -> Work:
    sampling = {"max_tokens": 40, "temperature": 0.0, "seed": 7} | sampling
    return Work(
        weights=Weights(base=base, adapter=adapter),
        messages=(Message(role="user", content=text),),
        sampling=Sampling(**sampling),
        draft=Weights(base=draft) if draft else None,
    )


async def ask(engine: ProcessEngine, asked: Work) -> tuple[list[str], Done, list[Piece]]:
    """The texts of all answers, how it ended, and every piece."""
    texts, pieces = [""] * asked.sampling.n, []
    async with aclosing(engine.submit(asked)) as arriving:
        async for arrived in arriving:
            if isinstance(arrived, Done):
                return texts, arrived, pieces
            texts[arrived.index] += arrived.text
            pieces.append(arrived)
    raise AssertionError("the generation ended without Done")


def reference(base: Path, adapter: Path | None, texts: Sequence[str], tokens: int = 40) -> list[str]:
    """What transformers, with PEFT, generates greedily, one question at a time."""
    from peft import PeftModel

    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    answers = []
    for text in texts:
        chat = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        out = model.generate(**ids, do_sample=False, max_new_tokens=tokens)
        answers.append(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    return answers


async def test_mixed_adapters_answer_as_each_would_alone(bench: Bench) -> None:
    jobs = [(adapter, question) for adapter in ("", "a", "b") for question in QUESTIONS[:2]]
    wanted = [
        answer for adapter in ("", "a", "b") for answer in reference(LARGE, bench.adapters.get(adapter), QUESTIONS[:2])
    ]

    got = await asyncio.gather(*(ask(bench.engine, work(question, adapter=adapter)) for adapter, question in jobs))

    assert [texts[0] for texts, _, _ in got] == wanted
    assert len({tuple(wanted[i : i + 2]) for i in (0, 2, 4)}) == 3, wanted


async def test_speculation_changes_nothing_but_the_number_of_forwards(bench: Bench) -> None:
    plain = await asyncio.gather(*(ask(bench.engine, work(question)) for question in QUESTIONS))

    drafted = await asyncio.gather(*(ask(bench.engine, work(question, draft="small")) for question in QUESTIONS))

    assert [texts for texts, _, _ in drafted] == [texts for texts, _, _ in plain]
    done = [done for _, done, _ in drafted]
    assert sum(d.accepted for d in done) > 0
    assert all(d.accepted <= d.drafted == d.draft_output_tokens and d.draft_input_tokens > 0 for d in done)


async def test_sampled_speculation_answers_and_counts(bench: Bench) -> None:
    texts, done, _ = await ask(bench.engine, work(QUESTIONS[0], draft="small", temperature=1.0, n=3))

    assert len(texts) == 3
    assert done.drafted > 0
    assert done.output_tokens > 0


async def test_a_seed_gives_the_same_answer_whoever_shares_the_batch(bench: Bench) -> None:
    asked = work("reverse: window", temperature=1.5, seed=11)
    (alone, _, _) = await ask(bench.engine, asked)

    together = await asyncio.gather(
        ask(bench.engine, asked),
        *(ask(bench.engine, work(q, temperature=1.2, seed=i, adapter="a")) for i, q in enumerate(QUESTIONS)),
    )

    assert together[0][0] == alone


async def test_several_answers_differ_but_start_from_one_prompt(bench: Bench) -> None:
    texts, done, pieces = await ask(bench.engine, work("reverse: window", temperature=2.0, n=4))

    assert len(set(texts)) > 1
    assert {piece.index for piece in pieces} == {0, 1, 2, 3}
    assert done.input_tokens < 40


async def test_a_stop_text_ends_the_answer_and_is_not_shown(bench: Bench) -> None:
    (whole,), _, _ = await ask(bench.engine, work("upper: hello"))
    stop = whole[2:4]

    (cut,), _, pieces = await ask(bench.engine, work("upper: hello", stop=(stop,)))

    assert cut == whole[: whole.index(stop)]
    assert pieces[-1].finish == "stop"


async def test_log_probabilities_are_those_of_the_model(bench: Bench) -> None:
    (text,), done, pieces = await ask(bench.engine, work("upper: hello", logprobs=True, top=3))

    entries = [entry for piece in pieces for entry in piece.logprobs]
    assert "".join(entry.token for entry in entries) == text
    assert all(entry.top[0] == (entry.token, entry.logprob) and len(entry.top) == 3 for entry in entries)
    assert done.min_probability <= min(2.718281828**entry.logprob for entry in entries) + 1e-9
    tokenizer = AutoTokenizer.from_pretrained(LARGE)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "upper: hello"}], add_generation_prompt=True)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(LARGE)(torch.tensor([ids["input_ids"]])).logits[0, -1]
    assert entries[0].logprob == pytest.approx(float(logits.log_softmax(-1).max()), abs=1e-4)


async def test_the_length_limit_ends_an_answer(bench: Bench) -> None:
    _, done, pieces = await ask(bench.engine, work("upper: hello", max_tokens=3))

    assert done.output_tokens == 3
    assert pieces[-1].finish == "length"


async def test_an_answer_that_ignores_the_end_goes_on_to_its_length_or_a_stop_text(bench: Bench) -> None:
    (plain,), short, _ = await ask(bench.engine, work("upper: hello", logprobs=True))
    assert short.output_tokens < 40

    (whole,), done, pieces = await ask(bench.engine, work("upper: hello", ignore_eos=True))
    (cut,), _, ended = await ask(bench.engine, work("upper: hello", ignore_eos=True, stop=(whole[3:6],)))
    (drafted,), sped, _ = await ask(bench.engine, work("upper: hello", ignore_eos=True, draft="small"))

    assert (done.output_tokens, sped.output_tokens, pieces[-1].finish) == (40, 40, "length")
    assert whole.startswith(plain)
    assert drafted == whole
    assert (cut, ended[-1].finish) == (whole[:3], "stop")


async def test_an_answer_ends_no_sooner_than_it_may(bench: Bench) -> None:
    (plain,), short, _ = await ask(bench.engine, work("upper: hello"))
    least = short.output_tokens + 5

    (text,), done, pieces = await ask(bench.engine, work("upper: hello", min_tokens=least, logprobs=True, top=3))
    (drafted,), sped, _ = await ask(bench.engine, work("upper: hello", min_tokens=least, draft="small"))
    (unstopped,), _, _ = await ask(bench.engine, work("upper: hello", min_tokens=3, stop=(plain[1],)))

    assert text.startswith(plain)
    assert least <= done.output_tokens == sped.output_tokens
    assert drafted == text
    entries = [entry for piece in pieces for entry in piece.logprobs]
    assert len(entries) >= least - 1
    assert "<end>" not in {token for entry in entries[:least] for token, _ in entry.top}
    assert unstopped == plain


async def test_a_prompt_beyond_the_context_is_refused(bench: Bench) -> None:
    with pytest.raises(Invalid) as caught:
        await ask(bench.engine, work("x" * 5000))

    assert caught.value.code == "context_length_exceeded"


async def test_more_answers_than_the_queue_holds_are_refused(bench: Bench) -> None:
    with pytest.raises(Exhausted) as caught:
        await ask(bench.engine, work("upper: hello", n=17))

    assert caught.value.code == "queue_full"
    assert caught.value.retry_after_s > 0


async def test_cancelling_frees_the_slot(bench: Bench) -> None:
    long = work("upper: hello", base="large", adapter="b", temperature=2.0, max_tokens=900, draft="small", n=8)
    arriving = bench.engine.submit(long)
    await anext(arriving)
    assert (await bench.engine.counters()).running >= 1

    await arriving.aclose()

    counters = await bench.engine.counters()
    assert (counters.running, counters.waiting) == (0, 0)


async def test_an_answer_that_nobody_reads_is_given_up_and_disturbs_nobody(tmp_path: Path) -> None:
    settings = Settings(socket=str(tmp_path / "line.sock"), coalesce_s=0.0)
    async with open_engine(settings, tmp_path / "run", most_unread=1 << 16) as engine:
        await engine.load_base(BaseSource(name="large", folder=str(LARGE)))
        alone, _, _ = await ask(engine, work("upper: hello"))
        long = work("upper: hello", max_tokens=900, ignore_eos=True, logprobs=True, top=20, n=8)
        stalled = engine.submit(long)
        await anext(stalled)

        beside, done, _ = await ask(engine, work("upper: hello"))
        await eventually_idle(engine)

        assert beside == alone
        assert done.output_tokens > 0
        with pytest.raises(Exhausted, match="65536 bytes of the answer were not read") as caught:
            while True:
                await anext(stalled)
        assert caught.value.code == "answer_not_read"
        assert (await engine.counters()).tokens < 8 * 900


async def eventually_idle(engine: ProcessEngine) -> None:
    async def idle() -> bool:
        counters = await engine.counters()
        return (counters.running, counters.waiting) == (0, 0)

    await eventually(idle)


async def test_an_adapter_that_is_not_held_is_never_answered_by_its_base(bench: Bench) -> None:
    with pytest.raises(Unavailable) as caught:
        await ask(bench.engine, work("upper: hello", adapter="nobody"))

    assert caught.value.code == "not_resident"
    with pytest.raises(Unavailable) as caught:
        await ask(bench.engine, work("upper: hello", base="nobody"))
    assert caught.value.code == "not_resident"


async def test_an_adapter_without_effect_is_refused_at_load(bench: Bench, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(LARGE), LoraConfig(r=4, target_modules=ALL, task_type="CAUSAL_LM")
    )
    model.save_pretrained(tmp_path)
    (tmp_path / "README.md").unlink(missing_ok=True)
    source = AdapterSource(weights=Weights(base="large", adapter="idle"), parts=(part_of(LARGE, tmp_path),))

    with pytest.raises(Invalid) as caught:
        await bench.engine.load_adapter(source)

    assert caught.value.code == "adapter_no_effect"


async def test_unloading_frees_the_bytes_and_the_name(bench: Bench) -> None:
    weights = Weights(base="large", adapter="short-lived")
    size = (
        await bench.engine.load_adapter(AdapterSource(weights=weights, parts=(part_of(LARGE, bench.adapters["a"]),)))
    ).bytes

    freed = [await bench.engine.unload(weights), await bench.engine.unload(weights)]

    assert freed == [size, 0]


async def test_a_killed_engine_fails_what_ran_and_comes_back(bench: Bench) -> None:
    losses = []
    bench.engine.lost = lambda: losses.append(True)
    engine = pid_of(bench.run)
    os.kill(engine, signal.SIGSTOP)
    running = asyncio.create_task(anext(bench.engine.submit(work("upper: hello"))))
    await asyncio.sleep(0.05)
    assert not running.done()

    os.kill(engine, signal.SIGKILL)

    with pytest.raises(Unavailable) as caught:
        await running
    assert caught.value.code == "engine_lost"
    await furnish(bench.engine, bench.adapters)
    (text,), _, _ = await ask(bench.engine, work("upper: hello"))
    assert text == reference(LARGE, None, ["upper: hello"])[0]
    assert losses == [True]


def pid_of(run: Path) -> int:
    import psutil

    mine = [
        child.pid for child in psutil.Process().children() if any(str(run.parent) in part for part in child.cmdline())
    ]
    assert len(mine) == 1
    return mine[0]


async def test_the_ways_of_cuda_can_be_asked_for_and_say_the_same(bench: Bench, tmp_path: Path) -> None:
    ways = Ways(kv="places", lora="mask", graphs="on")
    settings = Settings(socket=str(tmp_path / "line.sock"), kv_bytes=1 << 26, prefix_bytes=1 << 22, ways=ways)
    async with open_engine(settings, tmp_path / "run") as engine:
        await furnish(engine, bench.adapters)
        asked = [work(text, adapter=adapter) for text in QUESTIONS for adapter in ("", "a", "b")]
        answers = await asyncio.gather(*(ask(engine, one) for one in asked))
    for one, (texts, _, _) in zip(asked, answers, strict=True):
        assert texts == (await ask(bench.engine, one))[0]


async def test_ways_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    settings = Settings(socket=str(tmp_path / "line.sock"), ways=Ways(kv="bags", graphs="on"))
    async with open_engine(settings, tmp_path / "run") as engine:
        with pytest.raises(Invalid, match=r"needs adapters\.kv places"):
            await engine.load_base(BaseSource(name="small", folder=str(SMALL)))
