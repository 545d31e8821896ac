"""The asyncio side: streams, disconnects, the bounded queue, drain, failures, the death of the thread."""

import asyncio
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

import pytest

from glass_core.api import EngineClient, FinishReason, GenerationRequest, TokenEvent
from glass_core.config import SchedulerConfig
from glass_core.engine.client import ThreadedEngineClient
from glass_core.engine.worker import End
from glass_core.errors import (
    ContextLengthError,
    EngineFailureError,
    EngineUnavailableError,
    InvalidRequestError,
    QueueFullError,
)
from tests.core.engine_builders import GRIFFIN, answer_alone, make_engine, make_request, tokens_of
from tests.fakes_runner import POISON, FakeRunner

Stream = AsyncGenerator[TokenEvent, None]


class Crash(BaseException):
    """Nothing in the engine expects this."""


@asynccontextmanager
async def running(
    runner: FakeRunner, *, sequences: int = 4, max_waiting: int = 300
) -> AsyncIterator[ThreadedEngineClient]:
    scheduler = SchedulerConfig(max_num_sequences=sequences, max_step_tokens=8, max_waiting=max_waiting)
    client = ThreadedEngineClient(make_engine(runner, scheduler=scheduler))
    try:
        yield client
    finally:
        runner.gate.set()
        await client.close()


async def collect(stream: Stream) -> list[TokenEvent]:
    return [event async for event in stream]


async def generate(client: EngineClient, request: GenerationRequest) -> list[TokenEvent]:
    async with aclosing(await client.submit(request)) as stream:
        return await collect(stream)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            # the engine thread sets no asyncio event
            await asyncio.sleep(0.001)


def is_idle(client: ThreadedEngineClient, runner: FakeRunner) -> bool:
    stats = client.stats()
    used = stats.kv_blocks_used + stats.num_requests_running + stats.num_requests_waiting + stats.view_bytes_used
    return used == 0 and not runner.views


async def held_step(client: ThreadedEngineClient, runner: FakeRunner, request: GenerationRequest) -> Stream:
    """Submit, and return while the engine is inside the request's first step."""
    runner.entered.clear()
    runner.gate.clear()
    stream = await client.submit(request)
    await until(runner.entered.is_set)
    return stream


async def test_concurrent_streams_get_the_answers_they_get_alone() -> None:
    requests = [make_request(f"r{i}", [i, 2], max_tokens=9, sparsity=GRIFFIN) for i in range(12)]
    async with running(FakeRunner(num_kv_blocks=8)) as client:
        answers = await asyncio.gather(*(generate(client, request) for request in requests))
    for request, events in zip(requests, answers, strict=True):
        assert tokens_of(events, request.request_id) == answer_alone(request)
        assert [event.finish is not None for event in events] == [False] * 8 + [True]


async def test_one_delivery_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = FakeRunner()
    loop = asyncio.get_running_loop()
    deliveries = []

    def record(callback: Callable[..., object], *args: object) -> asyncio.Handle:
        deliveries.append(callback)
        return original(callback, *args)

    async with running(runner) as client:
        streams = [await held_step(client, runner, make_request("r0", max_tokens=6))]
        streams += [await client.submit(make_request(f"r{i}", max_tokens=6)) for i in range(1, 4)]
        original = loop.call_soon_threadsafe
        monkeypatch.setattr(loop, "call_soon_threadsafe", record)
        runner.gate.set()
        answers = await asyncio.gather(*map(collect, streams))
        monkeypatch.undo()
        assert sum(map(len, answers)) == 24
        assert len(deliveries) == len(runner.batches) < 24


async def test_leaving_a_stream_frees_its_memory() -> None:
    runner = FakeRunner()
    async with running(runner) as client:
        async with aclosing(await client.submit(make_request(max_tokens=40, sparsity=GRIFFIN))) as stream:
            await anext(stream)
        await until(lambda: is_idle(client, runner))
        assert len(runner.released) == 1


async def test_two_hundred_dropped_streams_leave_everything_free() -> None:
    runner = FakeRunner(num_kv_blocks=24)
    async with running(runner) as client:
        streams = [await client.submit(make_request(f"r{i}", max_tokens=50, sparsity=GRIFFIN)) for i in range(200)]
        await anext(streams[0])
        for stream in streams[:100]:
            await stream.aclose()
        del stream, streams
        gc.collect()
        await until(lambda: is_idle(client, runner))
        assert len(tokens_of(await generate(client, make_request()))) == 4


async def test_a_stream_closed_before_its_first_read_aborts_too() -> None:
    runner = FakeRunner()
    async with running(runner) as client:
        stream = await held_step(client, runner, make_request(max_tokens=40))
        await stream.aclose()
        runner.gate.set()
        await until(lambda: is_idle(client, runner))
        assert await collect(stream) == []


async def test_a_read_that_times_out_leaves_the_stream_usable() -> None:
    runner = FakeRunner()
    async with running(runner) as client:
        stream = await held_step(client, runner, make_request())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.01)
        runner.gate.set()
        assert len(tokens_of(await collect(stream))) == 4


async def test_closing_wakes_a_reader() -> None:
    runner = FakeRunner()
    async with running(runner) as client:
        stream = await held_step(client, runner, make_request())
        reader = asyncio.create_task(collect(stream))
        await asyncio.sleep(0)
        await stream.aclose()
        assert await reader == []


async def test_an_exception_thrown_into_a_stream_closes_it() -> None:
    runner = FakeRunner()
    async with running(runner) as client:
        stream = await client.submit(make_request(max_tokens=40))
        with pytest.raises(KeyError):
            await stream.athrow(KeyError("from outside"))
        await until(lambda: is_idle(client, runner))


async def test_finish_ends_a_stream_with_the_reason_of_the_caller() -> None:
    runner = FakeRunner()
    async with running(runner) as client:
        stream = await held_step(client, runner, make_request(max_tokens=50))
        client.finish("r", FinishReason.STOP)
        client.finish("unknown", FinishReason.STOP)
        runner.gate.set()
        first, last = await collect(stream)
        assert last.finish is not None
        assert (last.finish.reason, last.finish.num_generated_tokens) == (FinishReason.STOP, 1)
        client.finish("r", FinishReason.STOP)
        assert tokens_of([first, last]) == answer_alone(make_request(max_tokens=1))


async def test_bad_requests_are_refused_before_they_are_queued() -> None:
    async with running(FakeRunner()) as client:
        with pytest.raises(ContextLengthError):
            await client.submit(make_request(max_tokens=64))
        stream = await client.submit(make_request())
        with pytest.raises(InvalidRequestError, match="id 'r' is in use"):
            await client.submit(make_request())
        assert len(await collect(stream)) == 4


async def test_an_id_the_engine_still_holds_is_refused_through_the_stream() -> None:
    runner = FakeRunner()
    async with running(runner) as client:
        stream = await held_step(client, runner, make_request(max_tokens=40))
        client._engine.add(make_request("taken"))
        late = await client.submit(make_request("taken"))
        await stream.aclose()
        runner.gate.set()
        with pytest.raises(InvalidRequestError, match="in use"):
            await collect(late)


async def test_the_queue_is_bounded_across_the_thread_boundary() -> None:
    runner = FakeRunner()
    async with running(runner, sequences=1, max_waiting=2) as client:
        streams = [await held_step(client, runner, make_request("running", max_tokens=2))]
        streams += [await client.submit(make_request(f"waiting{i}", max_tokens=2)) for i in range(2)]
        assert client.stats().num_requests_waiting == 2
        with pytest.raises(QueueFullError, match="2 requests are waiting, the limit is 2") as caught:
            await client.submit(make_request("refused"))
        assert caught.value.retry_after_seconds == 1
        runner.gate.set()
        answers = await asyncio.gather(*map(collect, streams))
        assert [len(events) for events in answers] == [2, 2, 2]
        with pytest.raises(QueueFullError) as caught:
            for i in range(1000):
                streams.append(await client.submit(make_request(f"flood{i}", max_tokens=50)))
        assert 1 <= caught.value.retry_after_seconds <= 60
        for stream in streams:
            await stream.aclose()


async def test_a_failed_step_fails_its_streams_and_serving_goes_on() -> None:
    runner = FakeRunner()
    async with running(runner) as client:
        stream = await held_step(client, runner, make_request())
        other = await client.submit(make_request("other"))
        runner.failures.append(RuntimeError("/secret/path"))
        runner.gate.set()
        with pytest.raises(EngineFailureError) as caught:
            await collect(stream)
        assert "secret" not in str(caught.value)
        assert await collect(stream) == []
        assert len(await collect(other)) == 4
        client.check_health()
        await until(lambda: is_idle(client, runner))


async def test_a_row_without_a_token_fails_its_own_stream_with_its_own_message() -> None:
    runner = FakeRunner(poisoned={"poisoned"})
    async with running(runner) as client:
        poisoned = await client.submit(make_request("poisoned"))
        other = await client.submit(make_request("other"))
        with pytest.raises(EngineFailureError, match=POISON):
            await collect(poisoned)
        assert await collect(poisoned) == []
        assert len(await collect(other)) == 4
        await until(lambda: is_idle(client, runner))


async def test_a_dead_thread_fails_all_streams_and_the_health_check() -> None:
    runner = FakeRunner()
    async with running(runner) as client:
        streams = [await held_step(client, runner, make_request())]
        streams.append(await client.submit(make_request("never taken over")))
        runner.failures.append(Crash())
        runner.gate.set()
        for stream in streams:
            with pytest.raises(EngineFailureError, match="stopped unexpectedly"):
                await collect(stream)
        with pytest.raises(EngineUnavailableError):
            client.check_health()
        with pytest.raises(EngineUnavailableError):
            await client.submit(make_request())
        client.finish("r", FinishReason.STOP)
        assert await client.drain(1.0)


async def test_aborting_after_the_thread_died_is_fine() -> None:
    runner = FakeRunner()
    async with running(runner) as client:
        stream = await held_step(client, runner, make_request())
        runner.failures.append(Crash())
        runner.gate.set()
        await until(lambda: client._thread.closed)
        await stream.aclose()


async def test_drain_lets_running_requests_finish_and_refuses_new_ones() -> None:
    runner = FakeRunner()
    async with running(runner) as client:
        stream = await held_step(client, runner, make_request())
        draining = asyncio.create_task(client.drain(20.0))
        await asyncio.sleep(0)
        with pytest.raises(EngineUnavailableError, match="shutting down"):
            await client.submit(make_request("late"))
        runner.gate.set()
        assert len(tokens_of(await collect(stream))) == 4
        assert await draining
        assert await client.drain(0.0)


async def test_drain_aborts_what_is_left_at_the_deadline() -> None:
    runner = FakeRunner()
    async with running(runner) as client:
        stream = await held_step(client, runner, make_request(max_tokens=60))
        draining = asyncio.create_task(client.drain(0.01))
        await until(lambda: any(isinstance(command, End) for command in client._thread._commands))
        runner.gate.set()
        assert not await draining
        finish = (await collect(stream))[-1].finish
        assert finish is not None
        assert finish.reason is FinishReason.ABORTED
        assert is_idle(client, runner)


async def test_close_aborts_what_is_left_and_closes_the_runner() -> None:
    runner = FakeRunner()
    async with running(runner, sequences=1) as client:
        stream = await held_step(client, runner, make_request(max_tokens=60))
        waiting = await client.submit(make_request("waiting"))
        closing = asyncio.create_task(client.close())
        await asyncio.sleep(0)
        runner.gate.set()
        await closing
        for events in (await collect(stream), await collect(waiting)):
            assert events[-1].finish is not None
            assert events[-1].finish.reason is FinishReason.ABORTED
        assert runner.closed
        with pytest.raises(EngineUnavailableError):
            client.check_health()
        await client.close()


def test_a_loop_closed_with_open_streams_gives_their_memory_back() -> None:
    runner = FakeRunner()
    client = ThreadedEngineClient(make_engine(runner))
    streams = []

    async def leave_open() -> None:
        streams.append(await held_step(client, runner, make_request(max_tokens=60, sparsity=GRIFFIN)))

    async def come_back() -> None:
        await until(lambda: is_idle(client, runner))
        assert len(await generate(client, make_request("later"))) == 4
        await client.close()

    asyncio.run(leave_open())
    runner.gate.set()
    asyncio.run(come_back())


async def test_the_streams_of_a_closed_loop_do_not_block_the_next_one() -> None:
    runner = FakeRunner()
    async with running(runner) as client:
        left = await asyncio.to_thread(lambda: asyncio.run(held_step(client, runner, make_request(max_tokens=60))))
        stream = await client.submit(make_request("later"))
        runner.gate.set()
        assert len(await collect(stream)) == 4
        await until(lambda: is_idle(client, runner))
        del left


async def test_streams_of_two_loops_at_once_are_refused() -> None:
    runner = FakeRunner()
    async with running(runner) as client:
        stream = await held_step(client, runner, make_request())
        with pytest.raises(RuntimeError, match="one loop at a time"):
            await asyncio.to_thread(lambda: asyncio.run(_submit(client, make_request("other"))))
        runner.gate.set()
        assert len(await collect(stream)) == 4


async def _submit(client: EngineClient, request: GenerationRequest) -> None:
    await client.submit(request)


async def test_an_idle_engine_thread_sleeps() -> None:
    runner = FakeRunner()
    async with running(runner) as client:
        await generate(client, make_request())
        steps = client.stats().num_steps
        turns: list[None] = []
        client._engine.step = lambda: turns.append(None) or []  # type: ignore[method-assign,func-returns-value]
        await asyncio.sleep(0.02)
        assert (client.stats().num_steps, turns) == (steps, [])


async def test_a_command_for_a_request_that_is_gone_wakes_and_harms_nobody() -> None:
    runner = FakeRunner()
    async with running(runner) as client:
        client._thread.post(End("gone", FinishReason.STOP))
        await until(lambda: not client._thread._commands)
        assert len(await generate(client, make_request())) == 4
        assert client.stats().num_steps == 4


async def test_the_client_implements_the_contract() -> None:
    async with running(FakeRunner()) as client:
        contract: EngineClient = client
        assert contract.info.model_name == "fake"
        assert contract.stats().kv_blocks_total == 16
