"""Heavy packages are imported where they are used, through :func:`require`."""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import MissingExtraError


def require(module: str, extra: str) -> ModuleType:
    """Import ``module``, or say which extra installs it.

    Raises
    ------
    MissingExtraError
        If the module, or something it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module} cannot be imported ({error}): run pip install 'anofpdm[{extra}]'"
        ) from error
