"""Builds the cache that the settings ask for."""

from headrace_server.errors import CannotStart
from headrace_server.inference.cache.memory import MemoryTier
from headrace_server.inference.cache.response_cache import ResponseCache, SecondTier
from headrace_server.settings import InferenceSettings
from headrace_server.telemetry.metrics import Metrics


def open_cache(settings: InferenceSettings, metrics: Metrics) -> ResponseCache:
    """The cache of a server; Redis need not be there yet.  Raises CannotStart."""
    memory = MemoryTier(settings.cache_bytes, settings.cache_entry_bytes)
    return ResponseCache(memory, metrics, _redis(settings, metrics) if settings.cache_redis_url else None)


def _redis(settings: InferenceSettings, metrics: Metrics) -> SecondTier:
    try:
        from headrace_server.inference.cache.redis_tier import RedisTier
    except ImportError as error:
        raise CannotStart(
            f"inference.cache_redis_url is set, which needs more: pip install 'headrace-server[redis]' ({error})"
        ) from error
    try:
        return RedisTier(
            settings.cache_redis_url,
            metrics,
            keep_seconds=settings.cache_redis_seconds,
            max_entry_bytes=settings.cache_entry_bytes,
            command_seconds=settings.cache_redis_timeout_seconds,
        )
    except ValueError as error:
        raise CannotStart(f"inference.cache_redis_url: {error}") from error
