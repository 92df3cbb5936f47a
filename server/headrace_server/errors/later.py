"""Not now: try again later, or elsewhere, or with more time."""

from datetime import timedelta

from headrace_server.errors.error import HeadraceError


class Overloaded(HeadraceError):
    """A limit is reached; the same request may succeed after `retry_after`."""

    def __init__(self, message: str, retry_after: timedelta, **metadata: object) -> None:
        super().__init__(message, **metadata)
        self.retry_after = retry_after


class QueueFull(Overloaded):
    """The training queue is at its limit; the same request may succeed later."""

    reason = "QUEUE_FULL"

    def __init__(self, waiting: int, limit: int, retry_after: timedelta = timedelta(seconds=30)) -> None:
        super().__init__(
            f"{waiting} jobs are already waiting (limit {limit})", retry_after, waiting=waiting, limit=limit
        )


class NoPermit(Overloaded):
    """Too many rows wait for this model."""

    reason = "NO_PERMIT"

    def __init__(self, model: str, waiting_rows: int, limit: int, retry_after: timedelta, why: str = "") -> None:
        super().__init__(
            f"{waiting_rows} rows already wait for {model} (limit {limit}){f': {why}' if why else ''}",
            retry_after,
            model=model,
            waiting_rows=waiting_rows,
            limit=limit,
        )


class TooManyCalls(Overloaded):
    """The server has as many calls under way as it takes, streams included."""

    reason = "TOO_MANY_CALLS"

    def __init__(self, limit: int, retry_after: timedelta = timedelta(seconds=1)) -> None:
        super().__init__(f"{limit} calls are under way, the limit of this server", retry_after, limit=limit)


class BuffersFull(Overloaded):
    """The server holds as many bytes as it may of messages that came compressed."""

    reason = "BUFFERS_FULL"

    def __init__(self, limit_bytes: int, retry_after: timedelta = timedelta(seconds=1)) -> None:
        super().__init__(
            f"compressed messages have become {limit_bytes} bytes, the limit of this server",
            retry_after,
            limit_bytes=limit_bytes,
        )


class DeviceOutOfMemory(Overloaded):
    """A device has no memory left for the work."""

    reason = "DEVICE_OUT_OF_MEMORY"

    def __init__(
        self, device: str, retry_after: timedelta = timedelta(seconds=5), missing_bytes: int | None = None
    ) -> None:
        """`missing_bytes`: how much more would be needed, where that is known."""
        if missing_bytes is None:
            super().__init__(f"{device} is out of memory", retry_after, device=device)
        else:
            super().__init__(
                f"{device} is out of memory: {missing_bytes:,} bytes are missing, and nothing more may leave",
                retry_after,
                device=device,
                missing_bytes=missing_bytes,
            )
        self.device, self.missing_bytes = device, missing_bytes


class StorageFull(Overloaded):
    """The disk is full; nothing of what was being written is kept."""

    reason = "STORAGE_FULL"

    def __init__(self, needed_bytes: int, retry_after: timedelta = timedelta(minutes=1)) -> None:
        super().__init__(
            "the server's disk is full; nothing of the request was kept", retry_after, needed_bytes=needed_bytes
        )


class Unavailable(HeadraceError):
    """Not ready, or no longer; the same request may succeed after `retry_after`, here or at another replica."""

    def __init__(self, message: str, retry_after: timedelta, **metadata: object) -> None:
        super().__init__(message, **metadata)
        self.retry_after = retry_after


class ModelLoading(Unavailable):
    """The model is being loaded."""

    reason = "MODEL_LOADING"

    def __init__(self, model: str, retry_after: timedelta = timedelta(seconds=1)) -> None:
        super().__init__(f"{model} is being loaded", retry_after, model=model)


class NoCheckpointYet(Unavailable):
    """A job that goes on has written no such checkpoint yet."""

    reason = "NO_CHECKPOINT_YET"

    def __init__(self, name: str, state: str, retry_after: timedelta = timedelta(seconds=2)) -> None:
        super().__init__(f"there is no {name} yet; the job is {state}", retry_after, name=name, state=state)


class StoreAway(Unavailable, OSError):
    """The whole store is not where it was: nothing can be said of any object until it is back."""

    reason = "STORE_AWAY"

    def __init__(self, retry_after: timedelta = timedelta(seconds=5)) -> None:
        super().__init__("the store of data sets, checkpoints and programs is away", retry_after)


class Draining(Unavailable):
    """The server is shutting down.  `resume_after` is the last sequence that a stream has sent."""

    reason = "SERVER_DRAINING"

    def __init__(self, resume_after: int | None = None, retry_after: timedelta = timedelta(seconds=2)) -> None:
        if resume_after is None:
            super().__init__("the server is shutting down", retry_after)
        else:
            super().__init__(
                f"the server is shutting down; resume after {resume_after}", retry_after, resume_after=resume_after
            )


class Expired(HeadraceError):
    """The time that was given for the work is over."""


class ExpiredInQueue(Expired):
    """The deadline of the call passed while it waited for its turn; the model was not run."""

    reason = "EXPIRED_IN_QUEUE"

    def __init__(self, queue_ms: float) -> None:
        super().__init__(f"the deadline passed after {queue_ms:.0f} ms in the queue", queue_ms=f"{queue_ms:.0f}")


class TimedOut(Expired):
    """A request of a stream took longer than its own timeout, or the stream's deadline, allows."""

    reason = "TIMED_OUT"

    def __init__(self, timeout_seconds: float) -> None:
        super().__init__("the request took longer than it may", timeout_seconds=f"{timeout_seconds:g}")
