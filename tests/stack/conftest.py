"""What watches a proxy."""

from collections.abc import Iterator

import pytest
from prometheus_server import Load, Prometheus, under_load


@pytest.fixture(scope="module")
def watched(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Prometheus, Load]]:
    """A real Prometheus that watches two workers under load, for each event loop. It ends with the
    module: the load takes 20 % of a core or more, from every test that runs meanwhile."""
    with under_load(request.param, tmp_path_factory.mktemp("watched")) as watched:
        yield watched
