"""Every method of every service behaves through the native door as it does straight at grpc.aio.

The same calls are made at both, in the same order, in front of the same doubles; answers, codes, words, details and
metadata must be equal.  Messages are compared as what they say: protobuf writes the entries of a map in any order.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from headrace import ending
from headrace_server import _native
from headrace_server.rpc.reflection import ALPHA
from headrace_server.rpc.server import HEALTH, PUBLIC_SERVICES
from tests.doubles.door import Door, open_door

pytestmark = pytest.mark.skipif(not _native.door_built, reason="built without gRPC for C++")

LOADED = (health_pb2, reflection_pb2, error_details_pb2)  # what they describe is looked up by name
SERVICES = (*PUBLIC_SERVICES, HEALTH, f"{ALPHA}.ServerReflection")
METHODS = [method for service in SERVICES for method in descriptor_pool.Default().FindServiceByName(service).methods]
MAX_MESSAGE_BYTES = 2 << 20
ENDLESS = f"/{HEALTH}/Watch"  # only the caller's own clock ends it
METADATA = (("x-request-id", "the-same"), ("x-some-bin", bytes(range(64))))

CASES: dict[str, list[bytes]] = {
    "nothing": [],
    "an empty message": [b""],
    "two messages": [b"", b"\x0a\x01b"],  # with ids of their own, where they have ids
    "bytes that are no message": [b"\xff\xff\xff\xff\x0f"],
    "a field that nobody knows": [b"\xfa\xff\xff\xff\x0f\x03abc"],
    "a text that is not UTF-8": [b"\x0a\x02\xff\xfe"],
    "a name that nobody has": [b"\x0a\x0emodels/no-such"],
    "a message that is too large": [b"\x0a" + b"\x81\x80\x80\x01" + b"x" * (MAX_MESSAGE_BYTES + 1)],
}


@dataclass
class Ending:
    """All that a caller sees of a call."""

    answers: list[Any]
    code: grpc.StatusCode
    details: str | None
    initial: list[tuple[str, Any]]
    trailing: list[tuple[str, Any]]


def path_of(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


async def call(
    door: Door, method: MethodDescriptor, messages: list[bytes], timeout: float, enough: int | None = None
) -> Ending:
    """Call with these messages, read all there is, and note how it ended; after `enough` answers hang up."""
    channel, path = door.channel, path_of(method)
    words: dict[str, Any] = {"metadata": METADATA, "timeout": timeout}
    call: Any
    make: Any
    if method.client_streaming:
        make = channel.stream_stream if method.server_streaming else channel.stream_unary
        call = make(path)(_each(messages), **words)
    else:
        make = channel.unary_stream if method.server_streaming else channel.unary_unary
        call = make(path)(messages[0], **words)
    own = ending.Ending(call)
    failed: grpc.aio.AioRpcError | None = None
    answers: list[bytes] = []
    try:
        if method.server_streaming:
            async for answer in call:
                answers.append(answer)
                if len(answers) == enough:
                    call.cancel()
                    break
        else:
            answers.append(await call)
    except grpc.aio.AioRpcError as error:
        failed = await own.true_error(error)
    if failed is not None:
        code, details, metadata = (
            failed.code(),
            failed.details(),
            (failed.initial_metadata(), failed.trailing_metadata()),
        )
    else:
        code, details = await call.code(), await call.details()
        metadata = (await call.initial_metadata(), await call.trailing_metadata())
    initial, trailing = map(_read, metadata)
    kind = message_factory.GetMessageClass(method.output_type)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and not trailing:
        details = None  # what the caller's own clock ended is in the words of his own gRPC
    return Ending([_said(kind, answer) for answer in answers], code, details, initial, trailing)


def _read(metadata: Any) -> list[tuple[str, Any]]:
    details = "grpc-status-details-bin"
    pairs = [(key, _said(status_pb2.Status, value) if key == details else value) for key, value in metadata or ()]
    return sorted(pairs, key=str)


def _said(kind: Any, content: bytes) -> dict[str, Any]:
    return json_format.MessageToDict(kind.FromString(content), always_print_fields_with_no_presence=True)


async def _each(messages: list[bytes]) -> AsyncIterator[bytes]:
    for message in messages:
        yield message


@pytest.mark.parametrize("method", METHODS, ids=path_of)
async def test_a_method_answers_alike_through_both_doors(method: MethodDescriptor) -> None:
    async with AsyncExitStack() as stack:
        doors = [
            await stack.enter_async_context(open_door(door=kind, max_message_bytes=MAX_MESSAGE_BYTES))
            for kind in ("native", "grpc_aio")
        ]
        for door in doors:
            door.engine.release()
        for name, messages in CASES.items():
            if not method.client_streaming and len(messages) != 1:
                continue
            is_refused = "too large" in name
            enough = 1 if path_of(method) == ENDLESS and not is_refused else None
            through, straight = await asyncio.gather(*(call(door, method, messages, 60, enough) for door in doors))

            assert through == straight, name
            if is_refused:
                assert straight.code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("method", METHODS, ids=path_of)
async def test_a_caller_who_leaves_or_is_late_is_told_alike(method: MethodDescriptor) -> None:
    seen = []
    for kind in ("native", "grpc_aio"):
        async with open_door(door=kind) as door:
            late = await call(door, method, [b""], timeout=-1)
            leaving = asyncio.ensure_future(call(door, method, [b""], timeout=5))
            await asyncio.sleep(0)
            leaving.cancel()
            await asyncio.wait((leaving,))
            patience = 2 if path_of(method) == ENDLESS else 30
            again = await call(door, method, [b""], patience)  # the door is none the worse for it
            seen.append((late.code, leaving.cancelled(), again.code))

    assert seen[0] == seen[1]
    assert seen[0][0] is grpc.StatusCode.DEADLINE_EXCEEDED
    assert seen[0][1]


async def test_draining_is_told_alike() -> None:
    endings = []
    for kind in ("native", "grpc_aio"):
        async with open_door(door=kind) as door:
            door.closing.set()
            endings.append(
                [await call(door, method, [b""], 60, 1 if path_of(method) == ENDLESS else None) for method in METHODS]
            )

    assert endings[0] == endings[1]
    assert {ending.code for ending in endings[0]} >= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OK}


@pytest.mark.parametrize("path", ["/no.Such/Method", "/headrace.inference.v1.InferenceService/NoSuch", "/x"])
async def test_a_method_that_nobody_has_is_refused_alike(path: str) -> None:
    seen = []
    for kind in ("native", "grpc_aio"):
        async with open_door(door=kind) as door:
            ask: Any = door.channel.unary_unary(path)
            asking = ask(b"", metadata=METADATA)
            seen.append((await asking.code(), await asking.details()))

    assert seen[0] == seen[1]
    assert seen[0][0] is grpc.StatusCode.UNIMPLEMENTED
