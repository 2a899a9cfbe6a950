"""The file of keys: its settings, and that errors are reported without a secret."""

import hashlib
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from characters import CHARACTERS
from hypothesis import given
from hypothesis import strategies as st

from ape_cerebras import Config, ConfigError
from ape_cerebras.config.keys import ClientKey, read_keys_file

SECRET = "secret-of-alice"
DIGEST = hashlib.sha256(SECRET.encode())
ALICE = f'[[keys]]\nname = "alice"\nkey = "{SECRET}"\n'


def written(path: Path, text: str | bytes) -> str:
    file = path / "keys.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(file)


def test_all_settings_of_a_key_are_read(tmp_path: Path) -> None:
    read = read_keys_file(
        written(
            tmp_path,
            f"""
            [[keys]]
            name = "alice"
            key = "{SECRET}"
            requests_per_minute = 60
            concurrent_requests = 8
            usd_per_day = 0.1
            models = ["a", "b"]
            unpriced = "refuse"

            [[keys]]
            name = "b.o-b_2"
            sha256 = "{DIGEST.hexdigest().upper().replace("A", "B", 1)}"
            usd_per_day = 5
            """,
        )
    )
    alice, bob = read.keys
    assert alice == ClientKey(
        DIGEST.digest(), "alice", 60, 8, Decimal("0.1"), frozenset(("a", "b")), "refuse"
    )
    assert (bob.name, bob.usd_per_day, bob.models) == ("b.o-b_2", Decimal(5), None)
    assert bob.unpriced == "allow"
    assert alice.is_limited
    assert not ClientKey(b"", "carol").is_limited
    assert str(read) == read.path
    assert SECRET not in repr(read)
    assert DIGEST.hexdigest() not in repr(read)


def test_a_key_and_its_sha256_are_equal(tmp_path: Path) -> None:
    by_sha256 = f'[[keys]]\nname = "alice"\nsha256 = "{DIGEST.hexdigest()}"\n'
    first = read_keys_file(written(tmp_path, ALICE))
    assert first == read_keys_file(written(tmp_path, by_sha256))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("", "must hold tables [[keys]]"),
        ("keys = []", "must hold tables [[keys]]"),
        ('keys = "a"', "must hold tables [[keys]]"),
        ("[keys]\nname = 'a'\nkey = 'b'", "must hold tables [[keys]]"),
        (f"{ALICE}[other]\n", "must hold tables [[keys]]"),
        ("keys = [1]", "[[keys]] number 1 has a setting that is none of"),
        (f"{ALICE}request_per_minute = 1", "number 1 (alice), line 1, has a setting that is none"),
        ('[[keys]]\nname = "alice"', "number 1 (alice), line 1, needs a name, and either"),
        (f'\n[[keys]]\nkey = "{SECRET}"', "[[keys]] number 1, line 2, needs a name, and either"),
        (f'{ALICE}sha256 = "{"0" * 64}"', "number 1 (alice), line 1, needs a name, and either"),
        (
            f'{ALICE}[[keys]]\nname = "{SECRET}/"\nkey = "b"',
            "number 2, line 5, has a wrong name: it must",
        ),
        ('[[keys]]\nname = 1\nkey = "b"', "number 1, line 2, has a wrong name: it must"),
        ('[[keys]]\nname = ""\nkey = "b"', "number 1, line 2, has a wrong name: it must"),
        (f'[[keys]]\nname = "a"\nkey = "{SECRET} "', "a wrong key: it must be visible ASCII"),
        ('[[keys]]\nname = "a"\nkey = ""', "a wrong key: it must be visible ASCII"),
        (f'[[keys]]\nname = "a"\nsha256 = "{SECRET}"', "a wrong sha256: it must be 64"),
        (f"{ALICE}requests_per_minute = 0", "a wrong requests_per_minute: it must"),
        (f"{ALICE}requests_per_minute = true", "a wrong requests_per_minute: it must"),
        (f"{ALICE}requests_per_minute = 1.5", "a wrong requests_per_minute: it must"),
        (f'{ALICE}concurrent_requests = "8"', "a wrong concurrent_requests: it must"),
        (f"{ALICE}concurrent_requests = 10000001", "a wrong concurrent_requests: it must"),
        (f"{ALICE}usd_per_day = 0", "a wrong usd_per_day: it must"),
        (f"{ALICE}usd_per_day = nan", "(alice), line 4, has a wrong usd_per_day: it must"),
        *(
            (f"{ALICE}usd_per_day = {value}", "(alice), line 4, has a wrong usd_per_day: it must")
            for value in (
                *("1e9999999999999999999", "1e-9999999999999999999", "-1e9999999999999999999"),
                *("1e999999", "1e-999999", "0x" + "f" * 9999, "0.0000000000001", "1e-13", "-nan"),
                *("true", "1979-05-27", "07:32:00", "[1]", "{a=1}", "-0.0", "-1", "10000000.1"),
            )
        ),
        (f"{ALICE}concurrent_requests = 1e9999999999999999999", "line 4, has a wrong concurrent"),
        (f"{ALICE}name_x = 1e9999999999999999999", "none of"),
        (f"{ALICE}requests_per_minute = {'9' * 5000}", "a number of too many digits, at line 4"),
        (f"{ALICE}models = [1e9999999999999999999]", "line 4, has a wrong models"),
        (f'{ALICE}models = ["a", "b\\u0000"]', "line 4, has a wrong models"),
        (f"{ALICE}models = {{}}", "line 4, has a wrong models"),
        (f'\r\n{ALICE}"usd_per_day" = 0\r\n', "line 5, has a wrong usd_per_day"),
        (f"{ALICE}usd_per_day = 1\0", "is not valid TOML, at line 4"),
        (f"{ALICE}\0", "is not valid TOML, at line 4"),
        (f"{ALICE}{'a.' * 100_000}a = 1", "too many dots in a name, at line 4"),
        (ALICE + "x = {" + "'a'." * 50 + "a = 1}", "too many dots in a name, at line 4"),
        ('[[keys]]\nname = "a"\nkey = "b"\n' * 10_001, "more than 10000 keys"),
        ("keys = [" + "{name='a',key='b'}," * 5 + "{name='c'}]", "number 6 (c) needs a name"),
        ('[[keys]]\nname = "a"\nkey = "your_api_key"', "line 3, has a wrong key: it is a placehol"),
        ("[[keys]]\nname = 'a'\nkey = '\"b\"'", "line 3, has a wrong key: it begins or ends"),
        ("[[keys]]\nname = 'a'\nkey = '${KEY}'", "line 3, has a wrong key: it names a variable"),
        *(
            (f'[[keys]]\nname = "a"\nsha256 = "{digest}"', "a wrong sha256: it is the one of an em")
            for digest in (
                hashlib.sha256().hexdigest(),
                hashlib.sha256().hexdigest().upper(),
                hashlib.sha256(b"\n").hexdigest(),
            )
        ),
        (f"{ALICE.replace('alice', SECRET * 2)}usd_per_day = 0", "number 1, line 4, has a wrong"),
        (f"{ALICE}usd_per_day = inf", "a wrong usd_per_day: it must"),
        (f"{ALICE}usd_per_day = -1.5", "a wrong usd_per_day: it must"),
        (f'{ALICE}usd_per_day = "5"', "a wrong usd_per_day: it must"),
        (f"{ALICE}models = []", "a wrong models: it must"),
        (f'{ALICE}models = "a"', "a wrong models: it must"),
        (f'{ALICE}models = ["{SECRET} x"]', "a wrong models: it must"),
        (f"{ALICE}models = [1]", "a wrong models: it must"),
        (
            f'{ALICE}unpriced = "{SECRET}"',
            'a wrong unpriced: it must be either "allow" or "refuse"',
        ),
        (f"{ALICE}unpriced = true", "a wrong unpriced: it must"),
        (f"{ALICE}{ALICE}", "the same name twice"),
        (f'{ALICE}[[keys]]\nname = "bob"\nkey = "{SECRET}"', "the same key twice"),
        (f"{ALICE}{SECRET}", "is not valid TOML"),
        (f"{ALICE}{SECRET}\n", "is not valid TOML, at line 4"),
        (b"name = '\xff'", "is not UTF-8"),
        (ALICE.encode("utf-16"), "is not UTF-8"),
        ("a = " + "[" * 100_000, "is not valid TOML"),
        (f"{ALICE}# {'x' * 1024 * 1024}", "too large"),
    ],
)
def test_a_problem_names_the_setting_and_quotes_no_secret(
    tmp_path: Path, wrong: str | bytes, message: str
) -> None:
    path = written(tmp_path, wrong)
    with pytest.raises(ConfigError) as caught:
        Config.from_environment({"CEREBRAS_API_KEY": "key", "APE_API_KEYS_FILE": path})
    [problem] = caught.value.problems
    assert problem.startswith("APE_API_KEYS_FILE names a file ")
    assert message in problem
    assert SECRET not in problem


def test_visible_shows_only_the_path_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, ALICE)
    config = Config.from_environment({"CEREBRAS_API_KEY": "key", "APE_API_KEYS_FILE": path})
    assert config.visible()["APE_API_KEYS_FILE"] == path
    assert DIGEST.hexdigest() not in repr(config)


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path: Path) -> None:
    text = b"\xef\xbb\xbf" + ALICE.replace("\n", "\r\n").encode()
    assert (
        read_keys_file(written(tmp_path, text)).keys
        == read_keys_file(written(tmp_path, ALICE)).keys
    )


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (str(pipe), "/dev/zero", str(tmp_path)):
        with pytest.raises(ValueError, match="names something that is no regular file"):
            read_keys_file(path)


@given(st.binary(max_size=200) | st.text(CHARACTERS, max_size=200).map(str.encode))
def test_no_content_raises_anything_but_our_own_text(tmp_path_factory: Any, content: bytes) -> None:
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    for text in (content, ALICE.encode() + b"usd_per_day = " + content):
        path.write_bytes(text)
        try:
            read_keys_file(str(path))
        except ValueError as problem:
            assert type(problem) is ValueError  # noqa: PT017
            assert str(problem).startswith("names ")  # noqa: PT017
