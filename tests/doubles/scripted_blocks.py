"""Blocks of timed runs that take what a script says."""

from collections.abc import Callable, Iterator, Sequence


class ScriptedBlocks:
    """Blocks that take what the script says, the last of it for ever; notes in which order they were timed."""

    def __init__(self, **scripts: Sequence[float]) -> None:
        self.order: list[str] = []
        self.blocks = {name: self._block(name, iter(script), script[-1]) for name, script in scripts.items()}

    def _block(self, name: str, script: Iterator[float], last: float) -> Callable[[], float]:
        def block() -> float:
            self.order.append(name)
            return next(script, last)

        return block
