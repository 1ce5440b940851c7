"""Heavy packages are imported where they are used, through :func:`require`."""

import importlib
import importlib.util
from types import ModuleType

from ..errors import MissingExtraError


def require(module: str, extra: str | None) -> ModuleType:
    """Import ``module``, or say which extra installs it; None where none does.

    Raises
    ------
    MissingExtraError
        If the module, or something it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        install = f"'anofpdm[{extra}]'" if extra else module
        raise MissingExtraError(
            f"{module} cannot be imported ({error}): run pip install {install}"
        ) from error


def check_installed(module: str, extra: str) -> None:
    """See, without importing it, that a package is there; see :func:`require`."""
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(f"{module} is not installed: run pip install 'anofpdm[{extra}]'")
