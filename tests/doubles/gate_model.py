"""A model that computes when it is allowed to."""

import threading

from headrace_server.tensors import Tensors


class Gate:
    """A model that computes when it is allowed to, after it is warm."""

    def __init__(self) -> None:
        self.runs = 0
        self.is_open = threading.Event()
        self.warm_ups = 2

    def __call__(self, inputs: Tensors) -> Tensors:
        if self.warm_ups:
            self.warm_ups -= 1
        else:
            self.runs += 1
            assert self.is_open.wait(30)
        return {"y": inputs["x"] * 2}
