"""The least that an asyncio handler of grpcio can do: answers every call with its request.  Prints its port."""

import asyncio
from typing import Any

import grpc


async def _echo(request: bytes, context: Any) -> bytes:
    return request


class _AnyMethod(grpc.GenericRpcHandler):
    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return grpc.unary_unary_rpc_method_handler(_echo)


async def _main() -> None:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)])
    server.add_generic_rpc_handlers((_AnyMethod(),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


asyncio.run(_main())
