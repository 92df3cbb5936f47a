import asyncio

import grpc
import pytest
from grpc.aio import Metadata

from headrace.ending import Wish
from headrace.retry import Retry
from headrace.wire import Wire
from tests.doubles.given_clock import GivenClock


def broken() -> grpc.aio.AioRpcError:
    """What grpc.aio says of a call that ends in the moment in which its caller is cancelled."""
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), "Cancelling all calls")


async def swallow() -> None:
    """Wait to be cancelled, and tell of a broken connection instead."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise broken() from None


async def test_a_caller_that_was_cancelled_does_not_try_again_when_the_call_swallows_it() -> None:
    retry = Retry(clock=GivenClock())
    wire = Wire("127.0.0.1:1", retry=retry, timeout_seconds=10, max_message_bytes=1 << 20, credentials=None)
    tries: list[float | None] = []
    has_begun = asyncio.Event()

    async def call(seconds_left: float | None) -> None:
        tries.append(seconds_left)
        has_begun.set()
        await swallow()

    calling = asyncio.ensure_future(wire.repeat(call, None))
    await has_begun.wait()
    calling.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(calling, 10)
    assert len(tries) == 1


async def test_a_cancellation_from_before_is_not_one_of_this_call() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(0)

    Wish().check()

    task.uncancel()
