"""Whether an optional package can be used, found out before the work that needs it."""

from importlib import import_module
from importlib.util import find_spec


def missing(package: str, part: str = "") -> str:
    """Return why a package, or a part of it that loads late, cannot be used; empty if it can.

    A package may be there and not work: of another version than what it needs, or cut off.
    """
    if find_spec(package) is None:
        return f"{package} is not installed"
    try:
        module = import_module(package)
        if part:
            getattr(module, part)
    except (ImportError, OSError, RuntimeError, AttributeError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        return f"{package} is installed, but cannot be imported ({reason})"
    return ""
