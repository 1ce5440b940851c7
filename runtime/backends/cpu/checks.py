"""Checks of networks and of their predictions, whatever library computes them."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ...errors import QUOTED, BundleError, one_line
from ..base import BROKEN_NETWORK, Float32


def cannot_be(path: Path, action: str, error: Exception) -> BundleError:
    """The error where a library cannot load or run a network; ``action``: loaded or run."""
    reason = one_line(error, QUOTED)
    return BundleError(f"{path} cannot be {action}: {reason}: export it again")


def check_names(path: Path, names: Iterable[str]) -> None:
    """Raise BundleError unless these inputs and outputs are those of a bundle's network."""
    if missing := sorted({"x_t", "t", "eps_healthy", "eps_null"} - set(names)):
        raise BundleError(f"{path} is no network of ours, it lacks {missing[0]}: export it again")


def checked(path: Path, x_t: Float32, eps: object) -> Float32:
    """A prediction, if it is one of the noise in ``x_t``: BundleError otherwise."""
    if not isinstance(eps, np.ndarray) or (eps.shape, eps.dtype) != (x_t.shape, np.float32):
        raise BundleError(f"{path} predicts no noise of slices: export it again")
    if not np.isfinite(eps).all():
        raise BundleError(BROKEN_NETWORK)
    return eps
