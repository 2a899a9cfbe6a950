"""Every class of failure that there is, and an example of each."""

import inspect

from ape_cerebras import errors, limit_errors, upstream_errors
from ape_cerebras.errors import BadRequest, ProxyError
from ape_cerebras.limit_errors import BudgetSpent, NoTurn, RateLimited
from ape_cerebras.limits.token_buckets import Bucket, Verdict

FAILURES: list[type[ProxyError]] = [
    each
    for module in (errors, limit_errors, upstream_errors)
    for each in vars(module).values()
    if inspect.isclass(each) and issubclass(each, ProxyError) and each.__module__ == module.__name__
]

_MADE: dict[type[ProxyError], ProxyError] = {
    BadRequest: BadRequest("A reason."),
    BudgetSpent: BudgetSpent(3600.0),
    NoTurn: NoTurn(2.5),
    RateLimited: RateLimited(Verdict(0.75, Bucket("requests", 80, 60.0), 0.0)),
}


def example(failure: type[ProxyError]) -> ProxyError:
    return _MADE[failure] if failure in _MADE else failure()
