"""Who calls: his address, and the name that his certificate proves.

A call that came through the native door arrives from a private socket, and the door says who made it.  On the public
port itself nobody but gRPC is believed.
"""

from dataclasses import dataclass

from headrace_server.rpc.interceptor import Context

PEER = "x-headrace-peer"
IDENTITY = "x-headrace-identity"


@dataclass(frozen=True, slots=True)
class Caller:
    """The other end of a call."""

    address: str
    """As gRPC writes it: "ipv4:127.0.0.1:40000"."""
    identity: str
    """The subject's alternative name in his certificate, or its common name; empty when none was asked for."""


def caller_of(context: Context) -> Caller:
    """Who made this call."""
    peer: str = context.peer()
    if peer.startswith("unix:"):
        told = dict(context.invocation_metadata() or ())
        return Caller(str(told.get(PEER, peer)), str(told.get(IDENTITY, "")))
    identities = context.peer_identities() or ()
    return Caller(peer, next(iter(identities), b"").decode(errors="replace"))
