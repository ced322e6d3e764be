"""The pools of an instance: ours, or the user's own transports in their place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .opening import Settings

if TYPE_CHECKING:
    from ..config import Config
    from .aio import AsyncPool
    from .blocking import Pool
    from .foreign import AsyncForeign, Foreign


def make_pool(config: Config) -> Pool | Foreign:
    """Return what the sync calls go through."""
    if config.transport is not None:
        from .foreign import Foreign

        return Foreign(config.transport)
    from .blocking import Pool

    return Pool(_settings_of(config))


def make_apool(config: Config) -> AsyncPool | AsyncForeign:
    """Return what the async calls go through."""
    if config.async_transport is not None:
        from .foreign import AsyncForeign

        return AsyncForeign(config.async_transport)
    from .aio import AsyncPool

    return AsyncPool(_settings_of(config))


def _settings_of(config: Config) -> Settings:
    return Settings(
        verify=config.verify,
        cert=config.cert,
        http2=config.http2,
        limits=config.limits,
        proxy=config.proxy,
        trust_env=config.trust_env,
        stays=False if config.provider is not None and config.provider.closes_after_stream else None,
    )
