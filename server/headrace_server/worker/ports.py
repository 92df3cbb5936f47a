"""Ports that are chosen now and taken later, by another process."""

import contextlib
import errno
import random
import socket
from collections.abc import Container
from pathlib import Path

_PORTS_OF_CONNECTIONS = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port(without: Container[int] = ()) -> int:
    """A port that nobody has, on any address, and that is none of `without`.

    Not one of those that the kernel gives to outgoing connections: whoever takes the port does so seconds later, and
    by then a connection may have any of them.  Raises OSError when there is none.
    """
    try:
        first_of_the_kernel = int(_PORTS_OF_CONNECTIONS.read_text().split()[0])
    except FileNotFoundError:  # not Linux
        first_of_the_kernel = 32768
    ports = [port for port in range(max(10_000, first_of_the_kernel // 2), first_of_the_kernel) if port not in without]
    random.shuffle(ports)
    for port in ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    raise OSError(errno.EADDRINUSE, "no port is free")
