"""The keys that clients may present now, and what each name may use; a file of them is read again
when somebody asks for that."""

from anyio import to_thread

from ..config.config import Config
from ..config.keys_file import read_keys_file
from ..config.values import ClientKey
from ..telemetry.logs import Logs

__all__ = ("ApiKeys", "log_refused_keys_file")

_NO_LIMITS = ClientKey(b"")


class ApiKeys:
    """Of ``APE_API_KEY`` and ``APE_API_KEYS_FILE``. Where both know a name, the file says what it
    may use."""

    def __init__(self, config: Config) -> None:
        self._set = config.ape_api_key
        self.keys: tuple[ClientKey, ...] = ()
        """All of them."""
        self.any_limited = False
        """Whether there is a name that may not use as much as it likes."""
        self._by_name: dict[str | None, ClientKey] = {}
        self._names: set[str | None] = set()
        self._file = config.ape_api_keys_file
        self._adopt(() if self._file is None else self._file.keys)

    def _adopt(self, keys: tuple[ClientKey, ...]) -> None:
        self.keys = (*keys, *self._set)
        self._by_name = {key.name: key for key in keys}
        self._names |= {key.name for key in self.keys}
        self.any_limited = any(key.is_limited for key in keys)

    def knows(self, name: str) -> bool:
        """Whether a key has that name, or has had it: what it asked for may be under way."""
        return name in self._names

    def for_client(self, name: str | None) -> ClientKey:
        """The key of that name, for what it may use."""
        return self._by_name.get(name, _NO_LIMITS)

    async def reload(self, logs: Logs) -> None:
        """Read the file anew, if there is one. Where something is wrong with it, all stays as it
        was. Either is logged."""
        if self._file is None:
            return
        try:
            self._file = await to_thread.run_sync(read_keys_file, self._file.path)
        except ValueError as problem:
            log_refused_keys_file(logs, str(problem))
            return
        self._adopt(self._file.keys)
        logs.event("info", "Keys file read", keys=len(self._file.keys))


def log_refused_keys_file(logs: Logs, problem: str) -> None:
    """``problem`` is a text of ours, which begins behind the variable's name."""
    problem = f"APE_API_KEYS_FILE {problem}"
    logs.event("error", "Keys file refused, the keys stay as they were", problem=problem)
