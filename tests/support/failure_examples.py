"""Every class of failure that there is, and an example of each."""

import inspect

from ape_cerebras import errors
from ape_cerebras.errors import (
    BadRequest,
    BudgetReserved,
    BudgetSpent,
    NotAdmitted,
    ProxyError,
    RateLimited,
)

FAILURES: list[type[ProxyError]] = [
    each for each in vars(errors).values() if inspect.isclass(each) and issubclass(each, ProxyError)
]

_MADE: dict[type[ProxyError], ProxyError] = {
    BadRequest: BadRequest("A reason."),
    BudgetReserved: BudgetReserved(1.0, retry=True),
    BudgetSpent: BudgetSpent(3600.0),
    NotAdmitted: NotAdmitted(2.5),
    RateLimited: RateLimited(80, 0.0, 0.75),
}


def example(failure: type[ProxyError]) -> ProxyError:
    return _MADE[failure] if failure in _MADE else failure()
