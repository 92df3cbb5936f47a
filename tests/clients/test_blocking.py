"""The blocking client, from threads, against a server in this loop."""

import asyncio
import gc
import inspect
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import headrace
from headrace import BlockingClient, BlockingRun, Client, TrainingRun
from tests.doubles.scripted_server import ScriptedServer
from tests.doubles.scripted_training import history
from tests.doubles.until import until

ROWS = [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize(("plain", "async_"), [(BlockingClient, Client), (BlockingRun, TrainingRun)])
def test_it_has_everything_that_the_async_one_has(plain: type, async_: type) -> None:
    assert {name for name in dir(async_) if name[0] != "_"} <= set(dir(plain))
    for name in dir(async_):
        if name[0] != "_" and callable(getattr(async_, name)) and name not in ("follow", "logs"):
            theirs = inspect.signature(getattr(async_, name)).parameters
            assert list(inspect.signature(getattr(plain, name)).parameters) == list(theirs), name


async def test_a_whole_story_without_async(server: ScriptedServer) -> None:
    def story() -> None:
        with BlockingClient(server.target) as client:
            version = client.upload_dataset("digits", {"x": np.ones(3)})
            run = client.start_training(
                dataset=version.name, model="digits", trainer=headrace.TabularTrainer(target="x"), epochs=1
            )
            assert [event.sequence for event in run.follow()] == list(range(1, len(history()) + 1))
            assert [line.text for line in run.logs(after=3)] == ["line 4", "line 5"]
            assert run.wait(timeout=60).model_version == "models/digits/versions/1"
            assert client.training_run("j1").job.state == run.job.state
            assert client.predict("digits", ROWS).labels == ["even"]
            with pytest.raises(headrace.ModelNotFound):
                client.predict("none", ROWS)

    await asyncio.to_thread(story)


async def test_threads_share_one_client(server: ScriptedServer) -> None:
    with BlockingClient(server.target) as client:

        def ask(value: int) -> bool:
            row = np.full((1, 3), value, dtype=np.float32)
            return all(bool((client.predict("digits", row).output == value + 1).all()) for _ in range(10))

        assert all(await asyncio.gather(*(asyncio.to_thread(ask, value) for value in range(8))))
        assert server.inference.num_status_calls <= 8


async def test_inputs_of_a_stream_may_block(server: ScriptedServer) -> None:
    asked_from = set()

    def slow_rows() -> Iterator[NDArray[np.float64]]:
        for value in range(5):
            asked_from.add(threading.current_thread().name)
            yield np.full((1, 3), float(value))

    def story() -> list[int]:
        with BlockingClient(server.target) as client:
            return [answer.index for answer in client.predict_stream("digits", slow_rows(), window=2)]

    assert sorted(await asyncio.to_thread(story)) == [0, 1, 2, 3, 4]
    assert "headrace-client" not in asked_from


async def test_leaving_a_loop_hangs_up_and_closing_ends_the_thread(server: ScriptedServer) -> None:
    server.training.has_ended = False

    def story() -> None:
        client = BlockingClient(server.target)
        for _ in client.training_run("j1").follow():
            break
        client.close()
        client.close()
        with pytest.raises(RuntimeError, match="closed"):
            client.list_models()

    await asyncio.to_thread(story)

    assert not [thread for thread in threading.enumerate() if thread.name == "headrace-client"]


async def test_a_forgotten_client_is_closed(server: ScriptedServer) -> None:
    def story() -> None:
        BlockingClient(server.target).list_models()
        gc.collect()

    await asyncio.to_thread(story)

    assert not [thread for thread in threading.enumerate() if thread.name == "headrace-client"]


async def test_closing_while_another_thread_follows_ends_its_loop(server: ScriptedServer) -> None:
    server.training.has_ended = False
    client = BlockingClient(server.target)
    has_begun = threading.Event()

    def follow() -> str:
        try:
            for _ in client.training_run("j1").follow():
                has_begun.set()
        except RuntimeError as error:
            return str(error)
        return "ended"

    following = asyncio.create_task(asyncio.to_thread(follow))
    await asyncio.to_thread(has_begun.wait, 10)
    await asyncio.to_thread(client.close)

    assert "closed" in await asyncio.wait_for(following, 60)


async def test_ctrl_c_interrupts_a_wait_and_a_loop(server: ScriptedServer) -> None:
    server.training.has_ended = False
    program = f"""
import headrace
with headrace.BlockingClient({server.target!r}) as client:
    run = client.training_run("j1")
    try:
        print("waiting", flush=True)
        run.wait()
    except KeyboardInterrupt:
        print("interrupted", client.training_run("j1").name, flush=True)
    try:
        for event in run.follow(after={len(history()) - 1}):
            print("following", flush=True)
    except KeyboardInterrupt:
        print("interrupted", client.training_run("j1").name, flush=True)
"""
    interrupted = "interrupted trainingJobs/j1"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None

    async def line() -> str:
        assert process.stdout is not None
        return (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip()

    assert await line() == "waiting"
    await until(lambda: server.training.readers == 1)
    process.send_signal(signal.SIGINT)
    assert await line() == interrupted
    assert await line() == "following"
    process.send_signal(signal.SIGINT)
    assert await line() == interrupted
    assert await asyncio.wait_for(process.wait(), 60) == 0


async def test_an_interrupt_that_comes_before_anybody_waits_ends_a_loop(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.training.has_ended = False
    submit = asyncio.run_coroutine_threadsafe

    def submit_and_be_interrupted(*arguments: Any) -> None:
        monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", submit)
        submit(*arguments)
        raise KeyboardInterrupt

    def story() -> str:
        with BlockingClient(server.target) as client:
            run = client.training_run("j1")
            events = run.follow(after=len(history()) - 1)
            next(events)
            monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", submit_and_be_interrupted)
            with pytest.raises(KeyboardInterrupt):
                next(events)
            return client.training_run("j1").name

    assert await asyncio.wait_for(asyncio.to_thread(story), 60) == "trainingJobs/j1"
