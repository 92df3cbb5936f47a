"""Answers a prediction from what was computed before, or has it computed and keeps the answer.

Only for models whose owner has said so, because only he knows that the same question always has the same answer.
Belongs to the event loop.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import structlog

from headrace_server.inference.cache.entry import Entry, Unreadable, decode, encode
from headrace_server.inference.cache.key import fingerprint, key
from headrace_server.inference.cache.memory import MemoryTier
from headrace_server.inference.prediction import Prediction, Provenance, Timing
from headrace_server.models.serving import ResponseCaching
from headrace_server.models.version import ModelVersion
from headrace_server.telemetry.metrics import Metrics
from headrace_server.tensors import Tensors

log = structlog.get_logger()


class SecondTier(Protocol):
    """Where entries are looked for that are not in memory."""

    async def open(self) -> None:
        """Get ready, or be absent."""
        ...

    async def get(self, key: str) -> bytes | None:
        """The entry of a key, soon, or None; never raises for want of the store."""
        ...

    def put(self, key: str, content: bytes) -> None:
        """Keep an entry, some time, or not."""
        ...

    async def close(self) -> None:
        """End."""
        ...


class ResponseCache:
    """Two tiers of answers.  `clock` tells the time of day, in seconds since 1970."""

    def __init__(
        self,
        memory: MemoryTier,
        metrics: Metrics,
        second: SecondTier | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._memory = memory
        self._second = second
        self._metrics = metrics
        self._clock = clock

    async def open(self) -> None:
        """Get ready; to be called before anything is asked."""
        if self._second is not None:
            await self._second.open()

    async def answer(
        self,
        caching: ResponseCaching,
        version: ModelVersion,
        may_run: Sequence[Provenance],
        inputs: Tensors,
        output_names: Sequence[str],
        compute: Callable[[], Awaitable[Prediction]],
    ) -> Prediction:
        """The answer to inputs that fit, kept or computed.  `may_run` is everything that the version may run as now.

        Raises what `compute` raises, and nothing else.
        """
        if not caching.is_enabled:
            return await compute()
        began_at = time.monotonic()
        question = await fingerprint(inputs, output_names)
        for provenance in may_run:
            found = await self._find(caching, version, key(provenance, question), output_names)
            if found is not None:
                entry, tier = found
                self._metrics.cache_lookups.labels(version.model, tier).inc()
                return _recalled(version, entry, provenance, time.monotonic() - began_at)
        self._metrics.cache_lookups.labels(version.model, "miss").inc()
        prediction = await compute()
        self._keep(key(prediction.provenance, question), prediction)
        return prediction

    async def close(self) -> None:
        """Finish what is being kept."""
        if self._second is not None:
            await self._second.close()

    async def _find(
        self, caching: ResponseCaching, version: ModelVersion, key: str, output_names: Sequence[str]
    ) -> tuple[Entry, str] | None:
        content, tier = self._memory.get(key), "memory"
        if content is None and self._second is not None:
            content, tier = await self._second.get(key), "redis"
        if content is None:
            return None
        try:
            entry = decode(content, version.signature, output_names)
        except Unreadable as error:
            log.warning("cache.entry_unreadable", model=str(version.name), tier=tier, problem=str(error))
            self._memory.drop(key)
            return None
        if caching.max_age_seconds is not None and self._clock() - entry.made_at > caching.max_age_seconds:
            self._memory.drop(key)
            return None
        if tier == "redis":
            self._remember(key, content)
        return entry, tier

    def _keep(self, key: str, prediction: Prediction) -> None:
        content = encode(prediction.outputs, self._clock())
        self._remember(key, content)
        if self._second is not None:
            self._second.put(key, content)

    def _remember(self, key: str, content: bytes) -> None:
        self._memory.put(key, content)
        self._metrics.cache_bytes.set(self._memory.num_bytes)
        self._metrics.cache_entries.set(len(self._memory))


def _recalled(version: ModelVersion, entry: Entry, provenance: Provenance, seconds: float) -> Prediction:
    nothing = Timing(
        queue_seconds=0.0,
        assemble_seconds=0.0,
        compute_seconds=0.0,
        respond_seconds=seconds,
        batch_rows=0,
        batch_calls=0,
    )
    return Prediction(version, entry.outputs, nothing, provenance, is_from_cache=True)
