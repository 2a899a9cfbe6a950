"""Reading all settings at once: every problem is named, no secret is shown."""

import base64
import dataclasses
import resource
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ape_cerebras.config.config import Config, ConfigError
from ape_cerebras.config.keys import _PLACEHOLDER, ClientKey
from ape_cerebras.config.settings import SETTINGS, Setting
from ape_cerebras.config.values import Origin

SECRET = "csk-0123456789abcdef"
KEY = {"CEREBRAS_API_KEY": SECRET}
FIELDS = {each.name: each for each in dataclasses.fields(Config)}


def problems(environment: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Config.from_environment(environment)
    assert str(caught.value) == "; ".join(caught.value.problems)
    return caught.value.problems


def test_settings_and_fields_correspond() -> None:
    no_setting = ["keys_are_empty"]
    assert [setting.variable.lower() for setting in SETTINGS] + no_setting == list(FIELDS)
    required = [setting.variable.lower() for setting in SETTINGS if setting.required]
    unset = dataclasses.MISSING
    without_default = [
        name
        for name, each in FIELDS.items()
        if each.default is unset and each.default_factory is unset
    ]
    assert without_default == required


def test_the_defaults() -> None:
    config = Config.from_environment(KEY)
    assert config.cerebras_base_url == Origin("https", "api.cerebras.ai", 443)
    assert (config.host, config.port, config.backend) == ("0.0.0.0", 8000, "asyncio")
    assert (config.log_level, config.default_model) == ("info", "llama3.1-8b")
    assert config.ttft_mode == "passthrough"
    assert (config.max_header_bytes, config.max_headers) == (16 * 1024, 100)
    assert (config.max_target_bytes, config.max_body_bytes) == (8 * 1024, 10 * 1024**2)
    assert (config.connection_pool_size, config.keep_alive_connections) == (1000, 100)
    timeouts = {name: getattr(config, name) for name in FIELDS if name.endswith("_timeout")}
    assert timeouts == {
        "upstream_keep_alive_timeout": 60.0,
        "upstream_connect_timeout": 5.0,
        "upstream_first_byte_timeout": 60.0,
        "upstream_idle_timeout": 60.0,
        "request_timeout": None,
        "limits_store_timeout": 0.25,
        "client_head_timeout": 10.0,
        "client_body_timeout": 30.0,
        "client_write_timeout": 60.0,
        "keep_alive_timeout": 75.0,
        "graceful_shutdown_timeout": 10.0,
    }
    assert config.ape_api_key == ()
    assert config.model_prices.prices["gpt-oss-120b"].output == Decimal("0.75")


def test_every_default_is_accepted_by_its_setting() -> None:
    config = Config.from_environment(KEY)
    for setting in SETTINGS:
        value = getattr(config, setting.variable.lower())
        if isinstance(value, str | int | float | Origin) and not setting.secret:
            # A float's text has the form that a setting's may have: none is 1e16 or more.
            assert setting.parse(str(value)) == value


def test_variables_are_read_stripped_and_empty_ones_are_unset() -> None:
    config = Config.from_environment(
        {"CEREBRAS_API_KEY": f" {SECRET}\n", "PORT": " 9000 ", "HOST": "", "BACKEND": "  "}
    )
    assert config.cerebras_api_key.encode() == SECRET.encode()
    assert (config.port, config.host, config.backend) == (9000, "0.0.0.0", "asyncio")


OPEN = ("APE_API_KEY", "APE_API_KEY_FILE", "APE_API_KEYS_FILE")


@pytest.mark.parametrize("variable", OPEN)
def test_keys_that_are_set_and_empty_leave_the_door_open_knowingly(variable: str) -> None:
    unset = Config.from_environment(KEY)
    assert unset.open_warning == "APE_API_KEY is not set: every client is served"
    empty = Config.from_environment({**KEY, variable: ""})
    assert empty.open_warning == "APE_API_KEY is set, and empty: every client is served"
    closed = Config.from_environment({**KEY, "APE_API_KEYS_FILE": "", "APE_API_KEY": "hush-hush"})
    assert closed.open_warning == ""


@pytest.mark.parametrize("variable", OPEN)
@pytest.mark.parametrize("blank", [" ", "\r", "\t\n"])
def test_keys_that_are_only_blanks_are_refused(variable: str, blank: str) -> None:
    assert problems({**KEY, variable: blank}) == [f"{variable} is white space and nothing else"]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.variable)
@pytest.mark.parametrize("text", ['"hush"', "'hush'", '"hush', "hush'", "${HUSH}", "{{ hush }}"])
def test_quotes_and_references_are_refused(setting: Setting, text: str) -> None:
    reference = "names a variable, in braces, that nothing has replaced"
    quoted = "begins or ends with a quotation mark, which would be a part of it"
    (found,) = problems({**KEY, setting.variable: text})
    assert found.startswith(f"{setting.variable} {reference if '{' in text else quoted}")


PLACEHOLDERS = (
    *("your_api_key", "your-api-key-here", "YOUR_CEREBRAS_API_KEY", "csk-your-key-here", "xxx"),
    *("csk-xxxxxxxx", "csk-...", "sk-***", "<your key>".replace(" ", "-"), "$CEREBRAS_API_KEY"),
    *("%CEREBRAS_API_KEY%", "changeme", "change-me", "replace_me", "insert_key_here", "api_key"),
    *("placeholder", "None", "null", "undefined", "TODO"),
)


@pytest.mark.parametrize("text", PLACEHOLDERS)
def test_placeholders_are_no_keys(tmp_path: Path, text: str) -> None:
    wrong = "is a placeholder and no key"
    assert problems({"CEREBRAS_API_KEY": text}) == [f"CEREBRAS_API_KEY {wrong}"]
    assert problems({**KEY, "APE_API_KEY": f"good,alice:{text}"}) == [f"APE_API_KEY {wrong}"]
    file = tmp_path / "key"
    file.write_text(f"{text}\n")
    assert problems({"CEREBRAS_API_KEY_FILE": str(file)}) == [f"CEREBRAS_API_KEY_FILE {wrong}"]


def test_keys_in_quotes_within_a_list_are_refused() -> None:
    (found,) = problems({**KEY, "APE_API_KEY": "alice:'one',bob:'two'"})
    assert found.startswith("APE_API_KEY begins or ends with a quotation mark")
    (found,) = problems({**KEY, "APE_API_KEY": "alice:'one',bob:two"})
    assert found.startswith("APE_API_KEY begins or ends with a quotation mark")


@given(st.binary(min_size=24, max_size=48))
def test_random_keys_are_no_placeholders(drawn: bytes) -> None:
    for key in (drawn.hex(), base64.urlsafe_b64encode(drawn).decode(), base64.b85encode(drawn)):
        text = key if isinstance(key, str) else key.decode()
        assert not placeholder(f"csk-{text}")


def placeholder(text: str) -> bool:
    return _PLACEHOLDER.fullmatch(text) is not None


def test_unknown_variables_are_ignored() -> None:
    assert Config.from_environment({**KEY, "APE_UNKNOWN": "x", "PATH": "/bin"}).port == 8000


def test_all_problems_are_reported_at_once_in_table_order() -> None:
    found = problems(
        {"PORT": "http", "LOG_LEVEL": "loud", "APE_API_KEY": "a b", "MAX_HEADERS": "0"}
    )
    assert [text.partition(" ")[0] for text in found] == [
        *("CEREBRAS_API_KEY", "APE_API_KEY", "LOG_LEVEL", "PORT", "MAX_HEADERS"),
    ]
    assert found[0] == "CEREBRAS_API_KEY is required, except with --demo"


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.variable)
def test_a_problem_names_its_variable_and_shows_no_secret(setting: Setting) -> None:
    variable = setting.variable
    (found,) = problems({**KEY, variable: "\x01 hush,\x01 hush=hush"})
    assert found.startswith(f"{variable} ")
    assert SECRET not in found
    assert ("hush" in found) != setting.secret
    (found,) = problems({**KEY, variable: f"\x01 {SECRET}"})
    assert SECRET not in found


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("80000", " (it is '80000')"),
        ("é\n\0", " (it is '\\xe9\\n\\x00')"),
        ("a b " * 30, f" (it is '{'a b ' * 16}...')"),
        ("me:word@host", ""),
        ("0123456789abcdef01234567", ""),
        ("sk-0", ""),
        ("https://host/v1?key=word", ""),
    ],
)
def test_a_refused_value_is_quoted_unless_it_may_be_a_secret(text: str, shown: str) -> None:
    assert problems({**KEY, "PORT": text}) == [
        f"PORT must be a whole number from 0 to 65535{shown}"
    ]


def test_ca_certificates_are_looked_into_for_an_api_at_https_only() -> None:
    environment = {
        "CEREBRAS_API_KEY": "csk-x",
        "SSL_CERT_FILE": "/nowhere/ca.pem",
        "SSL_CERT_DIR": "/nowhere",
    }
    with pytest.raises(ConfigError) as caught:
        Config.from_environment(environment)
    assert len(caught.value.problems) == 2
    config = Config.from_environment({**environment, "CEREBRAS_BASE_URL": "http://127.0.0.1"})
    shown = config.visible()
    assert [shown[name] for name in ("SSL_CERT_FILE", "SSL_CERT_DIR")] == [
        *("/nowhere/ca.pem", "/nowhere"),
    ]


def test_overrides_win_over_variables_even_invalid_ones() -> None:
    config = Config.from_environment({"PORT": "wrong"}, port=1, cerebras_api_key="k", host="::1")
    assert (config.port, config.host, config.cerebras_api_key) == (1, "::1", "k")


def test_metrics_on_no_port_are_a_problem() -> None:
    for nowhere in ({}, {"METRICS_PORT": "8000"}, {"METRICS_PORT": "9", "PORT": "9"}):
        found = problems({**KEY, **nowhere, "METRICS_ON_MAIN_PORT": "off"})
        assert found == ["METRICS_ON_MAIN_PORT off needs a METRICS_PORT other than PORT"]
        Config.from_environment(
            {**KEY, **nowhere, "METRICS_ON_MAIN_PORT": "off", "METRICS_ENABLED": "off"}
        )


@pytest.mark.parametrize(
    ("settings", "port"),
    [
        ({}, None),
        ({"METRICS_PORT": "8002"}, 8002),
        ({"METRICS_PORT": "8000"}, None),
        ({"METRICS_PORT": "0", "PORT": "0"}, 0),
        ({"METRICS_PORT": "8002", "METRICS_ON_MAIN_PORT": "off"}, 8002),
        ({"METRICS_PORT": "8002", "METRICS_ENABLED": "off"}, None),
    ],
)
def test_the_port_for_scrapers(settings: dict[str, str], port: int | None) -> None:
    assert Config.from_environment({**KEY, **settings}).scrapers_port == port


# Secrets


@pytest.mark.parametrize("content", [SECRET, f"{SECRET}\n", f"\r\n {SECRET} \t\r\n"])
def test_a_secret_can_be_read_from_a_file(tmp_path: Path, content: str) -> None:
    file = tmp_path / "key"
    file.write_text(content)
    config = Config.from_environment({"CEREBRAS_API_KEY_FILE": str(file), "CEREBRAS_API_KEY": " "})
    assert config.cerebras_api_key.encode() == SECRET.encode()
    both = Config.from_environment({**KEY, "APE_API_KEY_FILE": str(file)})
    assert both.ape_api_key == Config.from_environment({**KEY, "APE_API_KEY": SECRET}).ape_api_key


def test_only_a_secret_can_be_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "port"
    file.write_text("9000")
    assert Config.from_environment({**KEY, "PORT_FILE": str(file)}).port == 8000


@pytest.mark.parametrize("variable", ["CEREBRAS_API_KEY", "APE_API_KEY"])
def test_h10_a_secret_given_twice_is_refused(tmp_path: Path, variable: str) -> None:
    file = tmp_path / "key"
    file.write_text("other")
    found = problems({**KEY, variable: SECRET, f"{variable}_FILE": str(file)})
    assert found == [f"{variable} and {variable}_FILE are both set"]


@pytest.mark.parametrize(
    "content", [b"two\nlines", b"nul\0", "clé".encode(), b"\xff", b"\xef\xbb\xbfkey", b"a b"]
)
def test_h8_a_malformed_secret_is_refused_and_not_shown(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"hush" + content)
    found = problems({"CEREBRAS_API_KEY_FILE": str(file)})
    assert found == ["CEREBRAS_API_KEY_FILE must be visible ASCII without white space"]


def test_h9_a_file_without_a_secret_is_refused(tmp_path: Path) -> None:
    empty, blank, large = (tmp_path / name for name in ("empty", "blank", "large"))
    empty.touch()
    blank.write_text(" \n")
    with large.open("wb") as file:
        file.truncate(2**30)
    cases = {
        tmp_path / "missing": "cannot be read",
        tmp_path: "cannot be read",
        empty / "below": "cannot be read",
        empty: "empty file",
        blank: "empty file",
        large: "too large for a secret",
        Path("/dev/zero"): "too large for a secret",
    }
    for path, text in cases.items():
        (found,) = problems({"CEREBRAS_API_KEY_FILE": str(path)})
        assert found.startswith("CEREBRAS_API_KEY_FILE names a")
        assert text in found


def test_a_secret_put_where_its_file_belongs_is_not_shown() -> None:
    (found,) = problems({"CEREBRAS_API_KEY_FILE": SECRET})
    assert SECRET not in found


def test_no_text_of_a_config_shows_a_secret() -> None:
    config = Config.from_environment({**KEY, "APE_API_KEY": "agent:hush-hush"})
    shown = f"{config} {config!r} {config.visible()}"
    assert SECRET not in shown
    assert "hush" not in shown
    digest = str(config.ape_api_key[0].digest)
    assert digest not in shown


def test_visible_shows_every_setting_by_its_variable() -> None:
    config = Config.from_environment(
        {**KEY, "MODEL_ALIASES": "a=b,c=d", "CEREBRAS_BASE_URL": "http://[::1]:1/x/v1"}
    )
    shown = config.visible()
    assert list(shown) == [setting.variable for setting in SETTINGS]
    assert shown["CEREBRAS_API_KEY"] == "(set)"
    assert shown["APE_API_KEY"] == "(not set)"
    assert shown["CEREBRAS_BASE_URL"] == "http://[::1]:1/x"
    assert shown["MODEL_ALIASES"] == "a=b,c=d"
    assert shown["HISTOGRAM_BUCKETS"] == shown["REQUEST_TIMEOUT"] == "(not set)"
    assert shown["PORT"] == "8000"
    assert "gpt-oss-120b" in shown["MODEL_PRICES"]
    assert all(isinstance(text, str) for text in shown.values())


def test_a_config_is_immutable() -> None:
    config = Config(cerebras_api_key="k", ape_api_key=(ClientKey(b"digest"),))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(("open_files", "connections"), [(64, 16), (100, 18), (1024, 480)])
def test_connections_follow_the_file_limit(open_files: int, connections: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, hard))
    try:
        config = Config(cerebras_api_key="k")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert config.max_connections == connections
