"""Packages that no extra of this project installs, imported where they are used."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from anofpdm.runtime.errors import MissingExtraError


def optional(module: str) -> ModuleType:
    """Import ``module``, or say how to install it.

    Raises
    ------
    MissingExtraError
        If the module, or something it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module} cannot be imported ({error}): run pip install {module}"
        ) from error


def installed(*names: str) -> list[str]:
    """Those of the packages that are installed."""
    found = []
    for name in names:
        try:
            version(name)
        except PackageNotFoundError:
            continue
        found.append(name)
    return found
