"""Server reflection under both of its names, so that any tool can call the server with no file at hand.

The library speaks `grpc.reflection.v1alpha` only.  `grpc.reflection.v1` has the same messages on the wire, so the same
servicer answers under both; its description, for tools that ask reflection about itself, is the old one renamed.
"""

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2

from headrace_server.rpc.interceptor import Interceptor

ALPHA = "grpc.reflection.v1alpha"
V1 = "grpc.reflection.v1"
SERVICES = (f"{V1}.ServerReflection", f"{ALPHA}.ServerReflection")


def add_reflection(services: Sequence[str], interceptor: Interceptor, server: grpc.aio.Server) -> None:
    """Let `server` describe `services` and itself."""
    servicer = reflection.aio.ReflectionServicer((*services, *SERVICES), pool=_Descriptions())
    methods = {
        "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(
            servicer.ServerReflectionInfo,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
    }
    for service in SERVICES:
        interceptor.add_methods(service, methods, server, drains=False)


class _Descriptions:
    """The descriptors of this process, and those of the renamed package."""

    def __init__(self) -> None:
        self._loaded = descriptor_pool.Default()
        self._renamed = descriptor_pool.DescriptorPool()
        self._renamed.Add(_renamed_file())

    def FindFileByName(self, name: str) -> Any:
        """As the pools of protobuf do; raises KeyError."""
        return self._find("FindFileByName", name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:
        """As the pools of protobuf do; raises KeyError."""
        return self._find("FindFileContainingSymbol", symbol)

    def FindMessageTypeByName(self, name: str) -> Any:
        """As the pools of protobuf do; raises KeyError."""
        return self._find("FindMessageTypeByName", name)

    def FindExtensionByNumber(self, message: Any, number: int) -> Any:
        """As the pools of protobuf do; raises KeyError."""
        return self._loaded.FindExtensionByNumber(message, number)

    def FindAllExtensions(self, message: Any) -> Any:
        """As the pools of protobuf do."""
        return self._loaded.FindAllExtensions(message)

    def _find(self, method: str, name: str) -> Any:
        try:
            return getattr(self._loaded, method)(name)
        except KeyError:
            return getattr(self._renamed, method)(name)


def _renamed_file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name, file.package = "grpc/reflection/v1/reflection.proto", V1
    for message in file.message_type:
        for field in (field for field in message.field if field.type_name):
            field.type_name = field.type_name.replace(f".{ALPHA}.", f".{V1}.")
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(f".{ALPHA}.", f".{V1}.")
            method.output_type = method.output_type.replace(f".{ALPHA}.", f".{V1}.")
    return file
