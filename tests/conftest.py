"""What all tests share: tests that need a GPU are skipped, with the reason, where there is none."""

import pytest

from headrace_server import _native


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` on a machine without one."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    num_devices, reason = _native.cuda_device_count()
    if num_devices == 0:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"no GPU: {reason}"))
