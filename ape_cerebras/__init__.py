"""A small, exact proxy in front of the Cerebras inference API.

The rooms, and who may import whom: a module imports from its own room and from what is drawn below
it; neighbours on one line never import each other. ::

                            __main__
                 ┌─────────────┼──────────────┐
                 │           server           │
             simulator       proxy         process
                 │           routes           │
                 │            chat            │
                 │      ┌──────┼──────┐       │
                 └► downstream upstream limits◄┘
                        └──────┼──────┘
                           telemetry
                    ┌──────────┼──────────┐
                  http1      config      net
                    └──────────┼──────────┘
                            errors
                            version

To embed it: ``proxy = await task_group.start(serve, config)`` on asyncio or trio, or make a
``Proxy`` and give ``Proxy.handle`` any anyio byte stream.
"""

from .net.deferred import defer  # noqa: F401 - before any import of what it defers  # isort: skip
from .config.config import Config, ConfigError
from .proxy import Proxy
from .server import serve
from .version import VERSION

__all__ = ("VERSION", "Config", "ConfigError", "Proxy", "serve")
