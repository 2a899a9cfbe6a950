"""A small, exact proxy in front of the Cerebras inference API.

The rooms, and who may import whom: a module imports from its own room and from what is drawn below
it; neighbours on one line never import each other. ::

                            __main__
                            commands
                 ┌─────────────┼──────────────┬──────────┐
                 │           server           │          │
             simulator       proxy         process     report
                 │           routes           │          │
                 │            chat            │          │
                 │      ┌──────┼──────┐       │          │
                 └► downstream upstream limits◄┘         │
                        └──────┼──────┘                  │
                           telemetry ◄───────────────────┘
                    ┌──────────┼──────────┐
                  http1      config      net
                    └──────────┼──────────┘
                            errors
                            version

The way of a request; each room is entered once on the way up and once on the way down::

    1   downstream/listener      accept a stream once there is room       net: kernel timestamps on
    2   server                   one task: proxy.handle(stream)
    3   proxy                    loop: wait for a request, begin its Exchange       started_at
    4   downstream/connection    read the head: http1/request_head checks it, h11 parses it
    5   telemetry/trace_context  identify: the ids, into the exchange
    6   routes.match             the route; limits/api_keys.check_key
    7   downstream/connection    read the body: h11                                 received_at
    8   chat/completions         chat/request: read, edit, compress
    9     limits/admission       only where limits are set
    10    upstream/client        retry, pool, httpcore: request out, head in        sent_at, head_at
    11  chat/completions         loop: chunk arrives, downstream sends it, chat/meter looks at it;
                                 a small one in the callback of its arrival, while the loop waits
    12  proxy, finally           Timings.of(exchange); metrics, health, logs        finished_at
    13  downstream.reusable      to 3, or linger and close

To embed it: ``proxy = await task_group.start(serve, config)`` on asyncio or trio; or make a
``Proxy(config, write_line)`` in an event loop, run ``proxy.run_in_background()`` beside it, and
give ``proxy.handle`` any anyio byte stream. ``proxy.drain()`` ends it.
"""

from .version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .config.config import Config, ConfigError
    from .proxy import Proxy
    from .server import serve

__all__ = ("VERSION", "Config", "ConfigError", "Proxy", "serve")

_MODULES = {
    "Config": ".config.config",
    "ConfigError": ".config.config",
    "Proxy": ".proxy",
    "serve": ".server",
}


def __getattr__(name: str) -> object:
    """Import the public names when they are used, so that the command line, which begins with this
    package like everybody, can close its process before that."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name], __name__), name)
