"""Ports that are chosen now and taken later."""

import socket
from pathlib import Path

from headrace_server.worker.ports import free_port


def test_a_port_can_be_taken_and_is_none_that_a_connection_may_get() -> None:
    port = free_port()

    with socket.create_server(("127.0.0.1", port)):
        first_of_the_kernel = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        assert port < first_of_the_kernel


def test_neither_a_taken_port_nor_an_unwanted_one_is_chosen() -> None:
    taken = free_port()
    free = free_port(without={taken})
    with socket.create_server(("127.0.0.1", taken)):
        all_but_two = set(range(65_536)) - {taken, free}
        assert free_port(without=all_but_two) == free
