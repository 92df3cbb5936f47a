"""Who holds the public port: the native door in front of the complete server, or the complete server itself.

The complete server is the one of grpc.aio, which answers every method.  Behind the native door it listens on a private
socket, and the door passes to it, byte for byte, whatever it does not answer itself.  Callers see no difference.
"""

import asyncio
from pathlib import Path
from typing import Literal, NoReturn, Protocol

import grpc

from headrace_server import _native
from headrace_server.errors import CannotStart, Draining, HeadraceError
from headrace_server.rpc.bounds import MAX_METADATA_BYTES, Bounds, unreadable
from headrace_server.rpc.plane import Plane
from headrace_server.rpc.server import address_of, bind, bind_socket, port_taken
from headrace_server.rpc.status import status_of
from headrace_server.rpc.tls import Staged, server_credentials, tls_of
from headrace_server.settings import ServerSettings

Kind = Literal["native", "grpc_aio"]


class Door(Protocol):
    """A bound public port.  Callers can connect; they are answered once it is open."""

    kind: Kind
    port: int

    async def open(self) -> None:
        """Begin to answer."""
        ...

    async def close(self, grace_seconds: float) -> None:
        """Take no calls any more; cancel what is still under way after so long, or when this is called again."""
        ...


def kind_of(setting: Literal["auto", "native", "grpc_aio"]) -> Kind:
    """What a setting means here.  Raises CannotStart when the native door is asked for and was not built."""
    if setting == "native" and not _native.door_built:
        raise CannotStart(
            "server.door = native, but the native module was built without gRPC for C++; install it "
            "(Debian: libgrpc++-dev) and build again, or choose server.door = grpc_aio"
        )
    if setting == "auto":
        return "native" if _native.door_built else "grpc_aio"
    return setting


def bind_door(
    kind: Kind, server: grpc.aio.Server, settings: ServerSettings, socket: Path, plane: Plane | None = None
) -> Door:
    """Bind the public port for a complete server that is neither bound nor started.

    `socket` is where the complete server listens when it is not the one that holds the port; `plane` is what the native
    door answers with by itself, nothing without it.  Raises CannotStart when the port cannot be had, or the files for
    TLS are of no use.
    """
    tls = tls_of(settings)
    if kind == "grpc_aio":
        credentials = server_credentials(tls) if tls is not None else None
        return _CompleteDoor(server, bind(server, settings.host, settings.port, credentials))
    address = bind_socket(server, socket)
    staged = Staged(tls, socket.parent) if tls is not None else None
    try:
        return _NativeDoor(server, settings, staged, address, plane)
    except BaseException:
        if staged is not None:
            staged.remove()
        raise


def told(error: HeadraceError) -> tuple[int, str, bytes]:
    """An error as the native door tells callers of it: code, message and details."""
    status = status_of(error)
    return status.code, status.message, status.SerializeToString()


class _CompleteDoor:
    """The complete server, on the public port itself."""

    kind: Kind = "grpc_aio"

    def __init__(self, server: grpc.aio.Server, port: int) -> None:
        self.port = port
        self._server = server

    async def open(self) -> None:
        await self._server.start()

    async def close(self, grace_seconds: float) -> None:
        await self._server.stop(grace_seconds)


class _NativeDoor:
    """The native door, and the complete server behind it."""

    kind: Kind = "native"

    def __init__(
        self,
        server: grpc.aio.Server,
        settings: ServerSettings,
        staged: Staged | None,
        complete_server: str,
        plane: Plane | None,
    ) -> None:
        bounds = Bounds(settings)
        tls = staged.tls if staged is not None else None
        self._server = server
        self._native = _native.Door(
            address=address_of(settings.host, settings.port),
            complete_server=complete_server,
            max_message_bytes=bounds.max_message_bytes,
            max_metadata_bytes=MAX_METADATA_BYTES,
            max_buffered_bytes=settings.max_buffered_bytes,
            max_concurrent_calls=bounds.max_calls,
            gone=told(Draining()),
            too_many_calls=told(bounds.too_many_calls()),
            too_much_metadata=told(bounds.too_much_metadata()),
            too_large=told(bounds.too_large()),
            no_room=told(bounds.buffers_full()),
            malformed=told(unreadable()),
            certificate=str(tls.certificate) if tls is not None else "",
            key=str(tls.key) if tls is not None else "",
            client_authority=str(tls.client_ca or "") if tls is not None else "",
            plane=plane.native if plane is not None else None,
        )
        if not self._native.bind():
            raise port_taken(settings.host, settings.port)
        self.port = self._native.port
        self._staged = staged
        self._following: asyncio.Task[NoReturn] | None = None
        self._ending: asyncio.Future[None] | None = None

    async def open(self) -> None:
        await self._server.start()
        self._native.open()
        if self._staged is not None:
            self._following = asyncio.ensure_future(self._staged.follow())

    async def close(self, grace_seconds: float) -> None:
        if self._ending is None:
            self._ending = asyncio.ensure_future(asyncio.to_thread(self._native.close, grace_seconds))
        elif not self._ending.done():
            self._native.hurry()
        # Shielded: a thread cannot be called back, and whoever closes again waits for the same end.
        await asyncio.shield(self._ending)
        await self._server.stop(grace_seconds)
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait((self._following,))
        if self._staged is not None:
            self._staged.remove()
