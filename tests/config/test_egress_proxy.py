"""The HTTP proxy on the way to the API, as settings and the environment name it."""

import pytest

from ape_cerebras import Config, ConfigError
from ape_cerebras.config.values import EgressProxy

KEY = {"CEREBRAS_API_KEY": "csk-test-0123456789"}
SQUID = EgressProxy("squid.example", 3128)


def proxy_of(**environment: str) -> EgressProxy | None:
    return Config.from_environment(KEY | environment).upstream_proxy


@pytest.mark.parametrize(
    ("text", "proxy"),
    [
        ("http://squid.example:3128", SQUID),
        ("http://squid.example:3128/", SQUID),
        ("http://squid.example", EgressProxy("squid.example", 80)),
        ("http://[::1]:3128", EgressProxy("::1", 3128)),
        ("http://me:a%40b%3A@10.0.0.1:1", EgressProxy("10.0.0.1", 1, b"Basic bWU6YUBiOg==")),
        ("http://me@10.0.0.1:1", EgressProxy("10.0.0.1", 1, b"Basic bWU6")),
    ],
)
def test_urls(text: str, proxy: EgressProxy) -> None:
    assert proxy_of(UPSTREAM_PROXY=text) == proxy
    assert proxy_of(HTTPS_PROXY=text) == proxy


@pytest.mark.parametrize(
    "text",
    [
        *("squid.example:3128", "https://squid.example", "socks5://squid.example", "http://"),
        *("http://a:99999", "http://a:0", "http://a/path", "http://a?q", "http://a b", "http://ü"),
        "http://a_b!c",
    ],
)
@pytest.mark.parametrize("variable", ["UPSTREAM_PROXY", "HTTPS_PROXY", "https_proxy"])
def test_what_is_no_proxy_is_refused_by_name_and_not_quoted(variable: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        proxy_of(**{variable: text})
    [problem] = caught.value.problems
    assert problem.startswith(f"{variable} ")
    assert text == "http://" or text not in problem


@pytest.mark.parametrize(
    ("exempt", "goes_through"),
    [
        ("", True),
        ("*", False),
        ("api.cerebras.ai", False),
        ("cerebras.ai", False),
        (".cerebras.ai", False),
        ("localhost, .CEREBRAS.ai", False),
        ("api.cerebras.ai:443", False),
        ("api.cerebras.ai:8443", True),
        ("ai", False),
        ("pi.cerebras.ai", True),
        ("cerebras.ai.example", True),
        (".", True),
    ],
)
@pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
def test_exemptions(variable: str, exempt: str, goes_through: bool) -> None:
    through = {"HTTPS_PROXY": "http://squid.example:3128", variable: exempt}
    assert proxy_of(**through) == (SQUID if goes_through else None)


def test_the_setting_wins_and_an_api_without_tls_is_reached_directly() -> None:
    other = {"HTTPS_PROXY": "http://other:1"}
    assert proxy_of(UPSTREAM_PROXY="http://squid.example:3128", NO_PROXY="*", **other) == SQUID
    assert proxy_of(CEREBRAS_BASE_URL="http://127.0.0.1:1/v1", **other) is None
    assert proxy_of(https_proxy="http://squid.example:3128", **other) == SQUID


def test_no_password_is_shown() -> None:
    config = Config.from_environment({**KEY, "UPSTREAM_PROXY": "http://me:secret@a:1"})
    assert config.visible()["UPSTREAM_PROXY"] == "(set)"
    for text in (repr(config.upstream_proxy), repr(config), str(config.visible())):
        assert "secret" not in text
        assert "bWU6c2VjcmV0" not in text
