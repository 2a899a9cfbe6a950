"""Libraries that are loaded when they are first used, which may be never.

httpcore imports trio wherever that is installed. To load it takes a quarter of the time it takes to
serve, and 5 MB, and what runs on asyncio has no use for it. So it stands among the loaded modules
from the beginning, and its code is read when somebody asks it for something it does not have yet
(PEP 562). importlib's own LazyLoader does not go so far: what it defers is loaded by the second
import, whether it is used or not.
"""

import sys
from importlib.util import find_spec, module_from_spec
from threading import RLock

__all__ = ("defer",)


def defer(name: str) -> None:
    """Have the package loaded when an attribute of it is first asked for, or a module in it is
    imported; in vain where it has been already. Raises ImportError where it is not installed."""
    if name in sys.modules:
        return
    spec = find_spec(name)
    if spec is None or spec.loader is None:
        raise ImportError(name=name)
    read_code = spec.loader.exec_module
    module = module_from_spec(spec)
    path = vars(module).pop("__path__")  # what imports a module in it asks for that first
    lock, begun = RLock(), False

    def load(attribute: str) -> object:
        nonlocal begun
        with lock:  # for other threads; the one that loads passes
            if not begun:
                begun = True
                module.__path__ = path
                read_code(module)
                if vars(module).get("__getattr__") is load:
                    del module.__getattr__
            elif vars(module).get("__getattr__") is load:  # asked for before it is there
                raise AttributeError(f"{name} has no {attribute} yet", name=attribute, obj=module)
        return getattr(module, attribute)

    vars(module)["__getattr__"] = load
    sys.modules[name] = module


defer("trio")
