"""When a call must have been answered, on the clock of the house."""

import time

from headrace_server.rpc.interceptor import Context


def deadline_of(context: Context) -> float | None:
    """`time.monotonic()` seconds, which are also those of the event loop; None when the caller set no deadline."""
    remaining: float | None = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining
