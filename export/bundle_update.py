"""Adding to a bundle: a calibration, an engine, a section of the model card."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from anofpdm.runtime.bundle.bundle import (
    CALIBRATION,
    MANIFEST,
    NETWORK,
    NETWORK_FP16,
    Bundle,
    Manifest,
    open_bundle,
)
from anofpdm.runtime.bundle.calibration import Calibration
from anofpdm.runtime.bundle.engines import ENGINES, Engine, fp16_network, rebuild
from anofpdm.runtime.errors import BundleError, OutputError
from anofpdm.runtime.util.files import whole_file


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest of the bundle at ``path``."""
    with whole_file(path / MANIFEST) as temporary:
        temporary.write_text(_as_json(asdict(manifest)), encoding="utf-8")


def write_card_section(bundle: Bundle, heading: str, text: str) -> None:
    """Put a section into the model card, in place of the one with this heading (``## ...``).

    Raises
    ------
    BundleError
        If the network has been replaced since the bundle was read.
    """
    current = _unchanged(bundle)
    parts = re.split(r"^(?=## )", current.manifest.model_card, flags=re.MULTILINE)
    sections = [part.strip() for part in parts if not part.startswith(heading)]
    card = "\n\n".join([*sections, f"{heading}{text.rstrip()}"]).lstrip() + "\n"
    write_manifest(bundle.path, replace(current.manifest, model_card=card))


def write_calibration(
    bundle: Bundle, preset: str, calibration: Calibration, default: bool = False
) -> None:
    """Add a calibration to a bundle; those that it has by then under other names stay.

    Parameters
    ----------
    preset : its name; an earlier one of that name is replaced
    default : whether it becomes the default; the first one does in any case

    Raises
    ------
    BundleError
        If the network has been replaced since the bundle was read.
    OutputError
        If the bundle cannot be written to; then nothing has changed.
    """
    path, current = bundle.path, _unchanged(bundle)
    presets = {name: asdict(other) for name, other in current.calibrations.items()}
    presets[preset] = asdict(calibration)
    chosen = preset if default or not current.default else current.default
    content = _as_json({"default": chosen, "presets": presets}).encode()
    files = {**current.manifest.files, CALIBRATION: hashlib.sha256(content).hexdigest()}
    _write_listed(path, replace(current.manifest, files=files), path / CALIBRATION, content)


def check_engine_folder(bundle: Bundle) -> None:
    """Check that engines can be added to a bundle, before one is built.

    Raises
    ------
    OutputError
        If its folder is read-only.
    """
    if (bundle.path / ENGINES).exists() and not (bundle.path / ENGINES).is_dir():
        raise OutputError(f"{bundle.path / ENGINES} is not a folder: remove it")
    for folder in (bundle.path, bundle.path / ENGINES):
        if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
            raise _not_added(bundle, f"{folder} is read-only")


def write_engine(bundle: Bundle, engine: Engine, data: bytes) -> Engine:
    """Add an engine to a bundle; those that it has by then stay, but for one of its name.

    Returns
    -------
    The record, with the hash of ``data``

    Raises
    ------
    BundleError
        If a network has been replaced since the bundle was read.
    OutputError
        If the bundle cannot be written to; then nothing has changed.
    """
    current = _unchanged(bundle)
    if engine.network_sha256 != current.manifest.files[fp16_network(current).name]:
        raise BundleError(
            f"the engine is not one of {bundle.path / NETWORK_FP16} as it is now: "
            f"{rebuild(bundle.path)}"
        )
    check_engine_folder(bundle)
    engine = replace(engine, sha256=hashlib.sha256(data).hexdigest())
    folder, path = bundle.path / ENGINES, bundle.path / ENGINES / engine.file_name
    engines = {**current.manifest.engines, engine.file_name: asdict(engine)}
    try:
        folder.mkdir(exist_ok=True)
        _write_listed(bundle.path, replace(current.manifest, engines=engines), path, data)
    except OSError as error:
        with suppress(OSError):
            folder.rmdir()  # where it is empty
        raise _not_added(bundle, str(error)) from error
    return engine


def _not_added(bundle: Bundle, reason: str) -> OutputError:
    return OutputError(
        f"an engine cannot be added to {bundle.path} ({reason}): copy the bundle to a folder that "
        "can be written to, and give the copy as the bundle (--bundle)"
    )


def _write_listed(bundle: Path, manifest: Manifest, path: Path, content: bytes) -> None:
    """Write a file of the bundle at ``bundle``, and the manifest that lists it: both or neither.

    Raises
    ------
    OutputError
        If the bundle cannot be written to; then nothing has changed.
    """
    before = path.read_bytes() if path.exists() else None
    try:
        with whole_file(bundle / MANIFEST) as listing, whole_file(path) as temporary:
            temporary.write_bytes(content)
            listing.write_text(_as_json(asdict(manifest)), encoding="utf-8")
    except OutputError:
        # The manifest was not replaced: the file must be the one that it lists.
        with suppress(OSError):  # the hash in the manifest gives it away
            if before is None:
                path.unlink(missing_ok=True)
            elif path.read_bytes() != before:
                path.write_bytes(before)
        raise


def _unchanged(bundle: Bundle) -> Bundle:
    """The bundle as it is now: what is added took long, and others may have added something too.

    Raises
    ------
    BundleError
        If the network has been replaced since the bundle was read.
    """
    current = open_bundle(bundle.path)
    if current.manifest.files[NETWORK] != bundle.manifest.files[NETWORK]:
        raise BundleError(f"{bundle.path} has got another network meanwhile: start again")
    return current


def _as_json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, allow_nan=False) + "\n"
