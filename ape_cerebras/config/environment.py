"""What the environment says beside the settings: proxies, the container's runtime, names that were
misspelt or meant for the older proxy.

Where ``UPSTREAM_PROXY`` is unset, ``HTTPS_PROXY`` and ``NO_PROXY`` are read as curl reads them, for
an API at https:// only; lower-case names win, as there.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from .settings import SETTINGS
from .values import EgressProxy, Origin, read_proxy

__all__ = ("describe_proxies", "find_proxy", "grace_advice", "near_misses", "without_meaning")

_FORMER = frozenset(
    ("MEMORY_LIMIT_MB", "CACHE_SIZE_MB", "BATCH_SIZE", "INFERENCE_TIMEOUT", "PERFORMANCE_TRACKING")
)
_PROXY_VARIABLES = (
    *("UPSTREAM_PROXY", "UPSTREAM_PROXY_FILE", "https_proxy", "HTTPS_PROXY", "http_proxy"),
    *("HTTP_PROXY", "all_proxy", "ALL_PROXY"),
)
"""In the order in which they count; the last four have no effect here."""
_SHORTEST_NAME = 6  # letters; below that, everything is near
_SHOWN_NAME = re.compile("[A-Za-z0-9_]{1,64}")

# What a container's runtime waits between SIGTERM and SIGKILL by default, in seconds, and how it is
# told to wait longer.
_KUBERNETES = (30, "Kubernetes", "terminationGracePeriodSeconds")
_DOCKER = (10, "Docker", "stop_grace_period, or 'docker stop --time'")
_DOCKER_MARKS = ("/.dockerenv", "/run/.containerenv")


def find_proxy(environment: Mapping[str, str], api: Origin) -> EgressProxy | None:
    """The proxy that the environment's own variables name for the API.

    Raises ValueError, beginning with the variable's name.
    """
    found = [name for name in ("https_proxy", "HTTPS_PROXY") if environment.get(name, "").strip()]
    if api.scheme != "https" or not found:
        return None
    exempt = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    if _is_exempt(api, exempt):
        return None
    try:
        return read_proxy(environment[found[0]].strip())
    except ValueError as problem:
        raise ValueError(f"{found[0]} {problem}") from None


def _is_exempt(api: Origin, exempt: str) -> bool:
    """Whether ``NO_PROXY`` names the API: its name, a domain that it is in, either with its port,
    or ``*``."""
    for entry in exempt.lower().replace(" ", ",").split(","):
        name, _, port = entry.rpartition(":") if re.search(r":[0-9]+$", entry) else (entry, "", "")
        name = name.lstrip(".")
        matches = name == "*" or (name != "" and f".{api.host}".endswith(f".{name}"))
        if matches and port in ("", str(api.port)):
            return True
    return False


def describe_proxies(proxy: EgressProxy | None, environment: Mapping[str, str]) -> str:
    """The ``proxy`` on the way to the API, and the variables that name it, or could have."""
    found = [name for name in _PROXY_VARIABLES if environment.get(name, "").strip()]
    if proxy is None:
        return f"none; without effect: {', '.join(found)}" if found else "none"
    return f"through {proxy}, which {found[0]} names" if found else f"through {proxy}"


def grace_advice(grace: float, environment: Mapping[str, str]) -> str:
    """That the container may be killed before the ``grace`` of the shutdown is over; empty where
    that is not to be expected. How long its runtime waits cannot be seen from within."""
    if "KUBERNETES_SERVICE_HOST" in environment:
        waits, runtime, remedy = _KUBERNETES
    elif any(Path(mark).exists() for mark in _DOCKER_MARKS):
        waits, runtime, remedy = _DOCKER
    else:
        return ""
    if grace <= waits:
        return ""
    return (
        f"GRACEFUL_SHUTDOWN_TIMEOUT ({grace:g}) is above the {waits} s that {runtime} waits "
        f"unless {remedy} says otherwise"
    )


def near_misses(environment: Mapping[str, str]) -> list[str]:
    """A text for each variable that has no meaning, and whose name is a setting's but for
    underscores, case, and one letter."""
    names = {setting.variable for setting in SETTINGS}
    names |= {f"{setting.variable}_FILE" for setting in SETTINGS if setting.secret}
    near = {spelling: name for name in names for spelling in _spellings(name)}
    found = []
    for variable in environment:
        if variable in names or not _SHOWN_NAME.fullmatch(variable):
            continue
        meant = next((near[each] for each in _spellings(variable) if each in near), None)
        if meant is not None:
            found.append(f"{variable} is no setting and has no effect; is {meant} meant?")
    return found


def _spellings(name: str) -> list[str]:
    """A name without underscores and case, and that less each one of its letters."""
    letters = name.replace("_", "").upper()
    if len(letters) < _SHORTEST_NAME:
        return []
    return [letters, *(letters[:at] + letters[at + 1 :] for at in range(len(letters)))]


def without_meaning(environment: Mapping[str, str]) -> list[str]:
    """The variables of the older proxy that are set, and that nothing here reads."""
    return sorted(_FORMER.intersection(environment))
