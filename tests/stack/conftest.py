"""What watches a proxy."""

from collections.abc import Iterator

import pytest
from prometheus_server import Load, Prometheus, under_load


@pytest.fixture(scope="session")
def watched(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Prometheus, Load]]:
    """A real Prometheus that watches two workers under load, for each event loop. For all modules:
    it scrapes nothing in the first five seconds."""
    with under_load(request.param, tmp_path_factory.mktemp("watched")) as watched:
        yield watched
