"""Every class of failure that there is, and an example of each."""

import inspect

from ape_cerebras import errors, upstream_errors
from ape_cerebras.errors import BadRequest, ProxyError

FAILURES: list[type[ProxyError]] = [
    each
    for module in (errors, upstream_errors)
    for each in vars(module).values()
    if inspect.isclass(each) and issubclass(each, ProxyError) and each.__module__ == module.__name__
]


def example(failure: type[ProxyError]) -> ProxyError:
    return BadRequest("A reason.") if failure is BadRequest else failure()
