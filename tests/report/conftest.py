"""The lines of a run that most tests of the report read."""

from collections.abc import Sequence

import pytest
from report_lines import lines_of


@pytest.fixture
def raw_lines() -> Sequence[bytes]:
    return lines_of(5000)
