"""What deserves a look in settings that are not wrong."""

from pathlib import Path

import pytest

from ape_cerebras import Config
from ape_cerebras.config import environment as environment_module
from ape_cerebras.config.config import contradictions
from ape_cerebras.config.environment import grace_advice, near_misses, without_meaning
from ape_cerebras.config.settings import SETTINGS

KEY = {"CEREBRAS_API_KEY": "csk-0123456789"}


def of(**settings: str) -> list[str]:
    return contradictions(Config.from_environment({**KEY, **settings}))


def test_the_defaults_contradict_nothing() -> None:
    assert of() == []


@pytest.mark.parametrize(
    ("settings", "pair"),
    [
        (
            {"CONNECTION_POOL_SIZE": "50", "MAX_CONCURRENT_REQUESTS": "100"},
            "CONNECTION_POOL_SIZE (50) is below MAX_CONCURRENT_REQUESTS (100)",
        ),
        (
            {"MAX_CONNECTIONS": "50", "MAX_CONCURRENT_REQUESTS": "100"},
            "MAX_CONNECTIONS (50) is below MAX_CONCURRENT_REQUESTS (100)",
        ),
        (
            {"CONNECTION_POOL_SIZE": "1", "WARM_CONNECTIONS": "2"},
            "CONNECTION_POOL_SIZE (1) is below WARM_CONNECTIONS (2)",
        ),
        (
            {"REQUEST_TIMEOUT": "4.5"},
            "REQUEST_TIMEOUT (4.5) is below UPSTREAM_CONNECT_TIMEOUT (5)",
        ),
        (
            {"REQUEST_TIMEOUT": "30", "MAX_QUEUE_SECONDS": "31"},
            "REQUEST_TIMEOUT (30) is below MAX_QUEUE_SECONDS (31)",
        ),
        (
            {"UPSTREAM_MAX_CONNECTION_AGE": "59"},
            "UPSTREAM_MAX_CONNECTION_AGE (59) is below UPSTREAM_KEEP_ALIVE_TIMEOUT (60)",
        ),
        ({"UPSTREAM_KEEP_ALIVE_TIMEOUT": "76"}, "UPSTREAM_KEEP_ALIVE_TIMEOUT (76) is above 75"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_that_do_not_fit(settings: dict[str, str], pair: str) -> None:
    (found,) = of(**settings)
    assert found.startswith(pair)


@pytest.mark.parametrize(
    "settings",
    [
        {"CONNECTION_POOL_SIZE": "100", "MAX_CONCURRENT_REQUESTS": "100"},
        {"REQUEST_TIMEOUT": "5"},
        {"UPSTREAM_KEEP_ALIVE_TIMEOUT": "75"},
    ],
)
def test_settings_that_just_fit(settings: dict[str, str]) -> None:
    assert of(**settings) == []


def test_a_grace_period_beyond_the_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    def said(seconds: str, **environment: str) -> str:
        config = Config.from_environment({**KEY, "GRACEFUL_SHUTDOWN_TIMEOUT": seconds})
        return grace_advice(config.graceful_shutdown_timeout, environment)

    monkeypatch.setattr(environment_module, "_DOCKER_MARKS", ())
    assert said("60") == said("30", KUBERNETES_SERVICE_HOST="10.0.0.1") == ""
    assert "above the 30 s that Kubernetes waits" in said("31", KUBERNETES_SERVICE_HOST="10.0.0.1")
    monkeypatch.setattr(environment_module, "_DOCKER_MARKS", ("/nowhere", str(Path(__file__))))
    assert said("10") == ""
    assert "(60) is above the 10 s that Docker waits" in said("60")


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("RETRY_ATTEMPT", "RETRY_ATTEMPTS"),
        ("LOGLEVEL", "LOG_LEVEL"),
        ("log_level", "LOG_LEVEL"),
        ("APE_APIKEY", "APE_API_KEY"),
        ("APE_API_KEYS", "APE_API_KEY"),
        ("APE_API_KEY_FILES", "APE_API_KEYS_FILE"),
        ("CEREBRAS_APIKEY", "CEREBRAS_API_KEY"),
        ("CEREBRAS_API_KEI", "CEREBRAS_API_KEY"),
        ("MAX_CONCURENT_REQUESTS", "MAX_CONCURRENT_REQUESTS"),
        ("METRICS_PROT", "METRICS_PORT"),
    ],
)
def test_near_misses(variable: str, meant: str) -> None:
    (found,) = near_misses({variable: "hush"})
    assert found.startswith(f"{variable} is no setting and has no effect; is {meant[:11]}")
    assert "hush" not in found


def test_what_is_near_nothing() -> None:
    names = {setting.variable for setting in SETTINGS}
    files = {f"{setting.variable}_FILE" for setting in SETTINGS if setting.secret}
    usual = {
        *("PATH", "HOME", "HOSTNAME", "PORTS", "LANG", "PWD", "SHLVL", "TERM", "USER", "LOGNAME"),
        *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "PYTHONPATH", "PYTHONUNBUFFERED", "TMPDIR"),
        *("KUBERNETES_PORT", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "VIRTUAL_ENV"),
        *("NIX_SSL_CERT_FILE", "OPENAI_API_KEY", "OPENAI_BASE_URL", "PROMETHEUS_MULTIPROC_DIR"),
        *("MEMORY_LIMIT_MB", "BACK", "MAX_HEADERS\n", "LOGLEVEL=", ""),
    }
    assert near_misses(dict.fromkeys(names | files | usual, "x")) == []


def test_variables_of_the_older_proxy() -> None:
    assert without_meaning({"PATH": "x", "BATCH_SIZE": "1", "MEMORY_LIMIT_MB": "2"}) == [
        *("BATCH_SIZE", "MEMORY_LIMIT_MB"),
    ]
