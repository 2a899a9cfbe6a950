"""The keys that clients may present, and the limits of each.

They come from ``APE_API_KEY`` and from the file ``APE_API_KEYS_FILE``, which is reloaded on request
(SIGHUP). If both name a client, the file's limits hold.
"""

import hashlib
import hmac
from functools import partial

from ..config.config import Config
from ..config.keys import ClientKey, read_keys_file
from ..errors import Unauthorized
from ..http1.messages import Request
from ..net.event_loop import ThreadCall
from ..telemetry.logs import Logs

__all__ = ("ApiKeys", "check_key", "log_rejected_keys_file")

_NO_LIMITS = ClientKey(b"")


class ApiKeys:
    """The keys of one proxy."""

    def __init__(self, config: Config) -> None:
        self._from_variable = config.ape_api_key
        self.keys: tuple[ClientKey, ...] = ()
        """All of them."""
        self.any_limited = False
        """Whether a key has a limit."""
        self.with_budget: tuple[str, ...] = ()
        """The names of keys with ``usd_per_day``."""
        self._by_name: dict[str | None, ClientKey] = {}
        self._file = config.ape_api_keys_file
        self._use(() if self._file is None else self._file.keys)

    def _use(self, from_file: tuple[ClientKey, ...]) -> None:
        self.keys = (*from_file, *self._from_variable)
        self._by_name = {key.name: key for key in from_file}
        self.any_limited = any(key.is_limited for key in from_file)
        self.with_budget = tuple(str(key.name) for key in from_file if key.usd_per_day is not None)

    def for_client(self, name: str | None) -> ClientKey:
        """The key of that name, for its limits."""
        return self._by_name.get(name, _NO_LIMITS)

    async def reload(self, logs: Logs) -> None:
        """Read the file again, if there is one. A file with an error changes nothing; both are
        logged."""
        if self._file is None:
            return
        try:
            self._file = await ThreadCall(partial(read_keys_file, self._file.path)).result()
        except ValueError as problem:
            log_rejected_keys_file(logs, str(problem))
            return
        self._use(self._file.keys)
        logs.event("info", "Keys file read", keys=len(self._file.keys))


def check_key(request: Request, keys: tuple[ClientKey, ...]) -> str | None:
    """Return the name of the key that a request presents, or None if no key is needed.

    All keys are compared, so that the duration does not show which one fits. Raises Unauthorized.
    """
    if not keys:
        return None
    scheme, _, token = (request.header(b"authorization") or b"").partition(b" ")
    token = token.strip()
    digest = hashlib.sha256(token).digest()
    fitting = [key for key in keys if hmac.compare_digest(digest, key.digest)]
    if scheme.lower() != b"bearer" or not token or not fitting:
        raise Unauthorized
    return fitting[0].name


def log_rejected_keys_file(logs: Logs, problem: str) -> None:
    """``problem`` is our own text, which follows the variable's name."""
    problem = f"APE_API_KEYS_FILE {problem}"
    logs.event("error", "Keys file refused, the keys stay as they were", problem=problem)
