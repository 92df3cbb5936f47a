"""What all tests share.

Tests that need a GPU are skipped, with the reason, where there is none.  Examples of property tests may take as long as
they like: how long is a matter of what else the machine does.
"""

import signal

import pytest
from hypothesis import HealthCheck, settings

from headrace_server import _native

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts this in the background has it ignore Ctrl-C, and whatever it starts, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "unhurried", parent=settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("unhurried")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` on a machine without one."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    num_devices, reason = _native.cuda_device_count()
    if num_devices == 0:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"no GPU: {reason}"))
