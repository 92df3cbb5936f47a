"""How long to wait before something is tried again that went wrong.  Knows nothing of what is tried."""

LONGEST_PAUSE_SECONDS = 30.0


class Setbacks:
    """What went wrong in a row.  The wait doubles with each."""

    def __init__(self, first_seconds: float) -> None:
        self._first_seconds = first_seconds
        self._num = 0

    def note(self) -> None:
        """Something went wrong again."""
        self._num += 1

    def forget(self) -> None:
        """All is well."""
        self._num = 0

    def delay_seconds(self, restarts: int = 0) -> float:
        """How long to wait; 0 when nothing went wrong.  `restarts` are setbacks that somebody else has counted."""
        num = max(restarts, self._num)
        return 0.0 if num == 0 else min(LONGEST_PAUSE_SECONDS, self._first_seconds * 2.0 ** min(num - 1, 16))
