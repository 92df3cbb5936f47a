"""What was asked for is right, and still cannot be done."""

from headrace_server.errors.error import HeadraceError


class Broken(HeadraceError):
    """A model failed although the request fits its signature."""


class ModelFailed(Broken):
    """The model failed on this request although the request fits its signature."""

    reason = "MODEL_FAILED"

    def __init__(self, model: str, problem: str) -> None:
        super().__init__(f"{model} failed: {problem}", model=model)


class CannotStart(HeadraceError):
    """The server cannot start as it is configured; the message says what to change."""
