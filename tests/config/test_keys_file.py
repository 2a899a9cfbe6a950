"""The file of keys: its settings, and that errors are reported without a secret."""

import hashlib
from decimal import Decimal
from pathlib import Path

import pytest

from ape_cerebras import Config, ConfigError
from ape_cerebras.config.keys_file import read_keys_file
from ape_cerebras.config.values import ClientKey

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

            [[keys]]
            name = "b.o-b_2"
            sha256 = "{DIGEST.hexdigest().upper().replace("A", "B", 1)}"
            usd_per_day = 5
            """,
        )
    )
    alice, bob = read.keys
    assert alice == ClientKey(
        DIGEST.digest(), "alice", 60, 8, Decimal("0.1"), frozenset(("a", "b"))
    )
    assert (bob.name, bob.usd_per_day, bob.models) == ("b.o-b_2", Decimal(5), None)
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
        (f"{ALICE}request_per_minute = 1", "[[keys]] number 1 has a setting that is none of"),
        ('[[keys]]\nname = "alice"', "[[keys]] number 1 needs a name, and either"),
        (f'[[keys]]\nkey = "{SECRET}"', "[[keys]] number 1 needs a name, and either"),
        (f'{ALICE}sha256 = "{"0" * 64}"', "[[keys]] number 1 needs a name, and either"),
        (f'{ALICE}[[keys]]\nname = "{SECRET}/"\nkey = "b"', "number 2 has a wrong name: it must"),
        ('[[keys]]\nname = 1\nkey = "b"', "number 1 has a wrong name: it must"),
        ('[[keys]]\nname = ""\nkey = "b"', "number 1 has a wrong name: it must"),
        (f'[[keys]]\nname = "a"\nkey = "{SECRET} "', "a wrong key: it must be visible ASCII"),
        ('[[keys]]\nname = "a"\nkey = ""', "a wrong key: it must be visible ASCII"),
        (f'[[keys]]\nname = "a"\nsha256 = "{SECRET}"', "a wrong sha256: it must be 64"),
        (f"{ALICE}requests_per_minute = 0", "a wrong requests_per_minute: it must"),
        (f"{ALICE}requests_per_minute = true", "a wrong requests_per_minute: it must"),
        (f"{ALICE}requests_per_minute = 1.5", "a wrong requests_per_minute: it must"),
        (f'{ALICE}concurrent_requests = "8"', "a wrong concurrent_requests: it must"),
        (f"{ALICE}concurrent_requests = 10000001", "a wrong concurrent_requests: it must"),
        (f"{ALICE}usd_per_day = 0", "a wrong usd_per_day: it must"),
        (f"{ALICE}usd_per_day = nan", "a wrong usd_per_day: it must"),
        (f"{ALICE}usd_per_day = inf", "a wrong usd_per_day: it must"),
        (f"{ALICE}usd_per_day = -1.5", "a wrong usd_per_day: it must"),
        (f'{ALICE}usd_per_day = "5"', "a wrong usd_per_day: it must"),
        (f"{ALICE}models = []", "a wrong models: it must"),
        (f'{ALICE}models = "a"', "a wrong models: it must"),
        (f'{ALICE}models = ["{SECRET} x"]', "a wrong models: it must"),
        (f"{ALICE}models = [1]", "a wrong models: it must"),
        (f"{ALICE}{ALICE}", "the same name twice"),
        (f'{ALICE}[[keys]]\nname = "bob"\nkey = "{SECRET}"', "the same key twice"),
        (f"{ALICE}{SECRET}", "is not valid TOML"),
        (b"name = '\xff'", "is not valid TOML"),
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
