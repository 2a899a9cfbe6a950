"""What the files by which the proxy is deployed have in common."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ape_cerebras import Config
from ape_cerebras.config.settings import SETTINGS

__all__ = ("CONTRIB", "config_of", "documents", "documents_in")

CONTRIB = Path(__file__).parents[2] / "contrib"
KNOWN = {setting.variable for setting in SETTINGS} | {
    f"{setting.variable}_FILE" for setting in SETTINGS if setting.secret
}


def documents(path: Path) -> list[dict[str, Any]]:
    return documents_in(path.read_text("utf-8"))


def documents_in(text: str | bytes) -> list[dict[str, Any]]:
    """By libyaml, ten times as fast as PyYAML's own parser: the rules and dashboards are long."""
    return list(yaml.load_all(text, yaml.CSafeLoader))


def config_of(environment: Mapping[str, str], folder: Path) -> Config:
    """The proxy's settings in an environment of which it knows every name; the keys' files, which
    are not here, are of this ``folder``."""
    assert set(environment) <= KNOWN
    key = folder / "key"
    key.write_text("a-key\n")
    here = {
        name: str(key) if name.endswith("_FILE") else text for name, text in environment.items()
    }
    return Config.from_environment(here)
