import asyncio
from collections.abc import Callable
from typing import Any, cast

import grpc
import pytest
from grpc.aio import Metadata

from headrace.ending import Ending, Wish
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
        await asyncio.wait_for(calling, 60)
    assert len(tries) == 1


async def test_a_cancellation_from_before_is_not_one_of_this_call() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(0)

    Wish().check()

    task.uncancel()


class EndedCall:
    """A call that has ended, whose last status is the server's."""

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        callback(self)

    async def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.OK

    async def details(self) -> str:
        return ""

    async def initial_metadata(self) -> Metadata:
        return Metadata()

    async def trailing_metadata(self) -> Metadata:
        return Metadata(("x-request-id", "r1"))


@pytest.mark.parametrize(
    ("code", "details"), [(grpc.StatusCode.INTERNAL, "Internal error from Core"), (grpc.StatusCode.OK, "")]
)
async def test_a_call_that_ends_well_before_everything_is_sent_can_be_made_again(
    code: grpc.StatusCode, details: str
) -> None:
    ending = Ending(cast("grpc.aio.Call", EndedCall()))
    raised = grpc.aio.AioRpcError(code, Metadata(), Metadata(("x-request-id", "r1")), details)

    error = await ending.true_error(raised)

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "before everything was sent" in (error.details() or "")
    assert error.trailing_metadata()["x-request-id"] == "r1"
