"""The same from an event loop, which is never blocked."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import candlewick as cw

PROMPT = "Once upon a time"


async def test_async_for(greedy):
    stream = greedy.stream(PROMPT)
    text = "".join([token.text async for token in stream])
    assert text == greedy.generate(PROMPT).text == stream.result.text


async def test_agenerate(greedy):
    assert (await greedy.agenerate(PROMPT)).token_ids == greedy.generate(PROMPT).token_ids
    batch = await greedy.agenerate([PROMPT, "The dog"])
    assert [r.text for r in batch] == [greedy.generate(p).text for p in (PROMPT, "The dog")]


async def test_errors_come_where_they_are_awaited(greedy):
    with pytest.raises(TypeError, match="temprature"):
        await greedy.agenerate(PROMPT, temprature=1.0)
    with pytest.raises(ValueError, match="temperature"):
        await greedy.agenerate(PROMPT, temperature=-1.0)


async def test_aclose_cancels(greedy):
    stream = greedy.stream(PROMPT, max_new_tokens=200, ignore_eos=True)
    async for _ in stream:
        break
    await stream.aclose()
    assert [token async for token in stream] == []
    assert stream.result.finish_reason == "cancelled"
    assert stream.result.generated_tokens < 200


async def test_async_context_manager(greedy):
    async with greedy.stream(PROMPT, max_new_tokens=200, ignore_eos=True) as stream:
        async for _ in stream:
            break
    assert stream.result.finish_reason == "cancelled"


async def test_a_cancelled_task_leaves_the_model_usable(greedy):
    async def consume():
        async for _ in greedy.stream(PROMPT, max_new_tokens=400, ignore_eos=True):
            started.set()

    started = asyncio.Event()
    task = asyncio.create_task(consume())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    waiting = asyncio.create_task(greedy.agenerate(PROMPT, max_new_tokens=400, ignore_eos=True))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (await greedy.agenerate(PROMPT)).token_ids == greedy.generate(PROMPT).token_ids


async def test_a_timeout_interrupts(greedy):
    with pytest.raises((TimeoutError, asyncio.TimeoutError)):
        await asyncio.wait_for(greedy.agenerate([PROMPT] * 64, max_new_tokens=400, ignore_eos=True), 0.05)
    assert (await greedy.agenerate(PROMPT)).generated_tokens > 0


async def test_threads_and_tasks_together_equal_a_serial_run(sampling):
    prompts = [f"{PROMPT} number {index % 7}" for index in range(64)]
    serial = [sampling.generate(p, seed=i).token_ids for i, p in enumerate(prompts)]

    async def task(index):
        return [token.token_id async for token in sampling.stream(prompts[index], seed=index)]

    def thread(index):
        return [token.token_id for token in sampling.stream(prompts[index], seed=index)]

    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(32) as pool:
        threads = [loop.run_in_executor(pool, thread, index) for index in range(32, 64)]
        tasks = [task(index) for index in range(32)]
        results = await asyncio.gather(*tasks, *threads)
    assert results == serial


async def test_the_loop_is_not_blocked(greedy):
    lags = []

    async def ticker():
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            lags.append(time.perf_counter() - before - 0.001)

    ticking = asyncio.create_task(ticker())
    started = time.perf_counter()
    results = await greedy.agenerate([PROMPT] * 32, max_new_tokens=100, ignore_eos=True)
    elapsed = time.perf_counter() - started
    async for _ in greedy.stream(PROMPT, max_new_tokens=100, ignore_eos=True):
        pass
    ticking.cancel()
    assert sum(r.generated_tokens for r in results) == 3200
    # A loop that is blocked while the model works ticks hardly ever; one slow tick may be the machine's.
    assert len(lags) > 20 * elapsed
    lags.sort()
    assert lags[int(len(lags) * 0.9)] < 0.020


async def test_a_long_prompt_is_encoded_beside_the_loop(tiny_model, greedy, monkeypatch):
    text = "Once upon a time " * 400
    ids = tiny_model.tokenizer.encode(text)
    with pytest.raises(cw.ContextLengthError):
        await greedy.agenerate(text * 40)
    begun = []
    to_thread = asyncio.to_thread
    monkeypatch.setattr(asyncio, "to_thread", lambda work: begun.append(work) or to_thread(work))
    if len(ids) < tiny_model.context_length:
        assert (await greedy.agenerate(text, max_new_tokens=2)).prompt_tokens == len(ids)
    else:
        with pytest.raises(cw.ContextLengthError):
            await greedy.agenerate(text, max_new_tokens=2)
    assert len(begun) == 1
    task = asyncio.create_task(greedy.agenerate(text, max_new_tokens=400, ignore_eos=True))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await greedy.agenerate(PROMPT)).generated_tokens > 0
    assert len(begun) == 2


async def test_several_tasks_may_read_one_stream(greedy):
    expected = greedy.generate(PROMPT, max_new_tokens=12, ignore_eos=True).token_ids
    stream = greedy.stream(PROMPT, max_new_tokens=12, ignore_eos=True)

    async def read():
        return [(token.index, token.token_id) async for token in stream]

    found = await asyncio.wait_for(asyncio.gather(*(read() for _ in range(4))), 30)
    assert sorted(pair for part in found for pair in part) == list(enumerate(expected))


PROGRAM = """
import asyncio
import candlewick as cw

generator = cw.Generator(cw.Model.from_pretrained("candlewick/tiny"), max_new_tokens=4)
asyncio.run(generator.agenerate("Once upon a time"))
"""


def test_a_program_ends_cleanly_after_its_last_token(run_python):
    """The thread that wakes event loops may be at work when the interpreter ends."""
    for _ in range(5):
        done = run_python("-c", PROGRAM)
        assert (done.returncode, done.stderr) == (0, "")


def test_one_model_serves_several_loops(greedy):
    expected = greedy.generate(PROMPT).text
    for _ in range(3):
        assert asyncio.run(collect(greedy)) == expected


async def collect(generator):
    return "".join([token.text async for token in generator.stream(PROMPT)])
