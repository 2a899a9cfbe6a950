"""A real redis-server for the tests of a module."""

from collections.abc import Iterator

import pytest
from redis import Redis
from redis_server import RedisServer, redis_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
def emptied(server: RedisServer) -> Iterator[Redis]:
    """Its contents, empty at first."""
    with Redis.from_url(server.url, decode_responses=True) as contents:
        contents.flushall()
        yield contents
