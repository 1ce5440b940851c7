"""Checkpoint in, verified bundle out."""

from __future__ import annotations

import copy
import platform
import secrets
import shutil
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from anofpdm import __version__
from anofpdm.runtime.bundle import NETWORK, Manifest, write_manifest
from anofpdm.runtime.denoiser import OnnxDenoiser
from anofpdm.runtime.errors import OutputError
from anofpdm.runtime.files import sha256
from anofpdm.runtime.schedule import Schedule
from anofpdm.train.checkpoint import Checkpoint

from .network import BothLabels
from .onnx_file import export_onnx
from .parity import FP16_TOLERANCE, FP32_TOLERANCE, Parity, compare, torch_denoiser


def write_bundle(
    checkpoint: Checkpoint,
    path: Path,
    *,
    name: str,
    precision: str = "fp32",
    store_fp16: bool = False,
    scored: tuple[str, ...] | None = None,
    model_card: str = "",
) -> Parity:
    """Export the EMA network to a bundle that is not calibrated yet.

    Parameters
    ----------
    path : the bundle's folder; must not exist
    precision : ``fp32``, or ``fp16`` for a network typed in float16
    store_fp16 : see :func:`anofpdm.export.onnx_file.export_onnx`
    scored : the modalities that count for the anomaly map; default all

    Raises
    ------
    ParityError
        If ONNX Runtime disagrees with PyTorch; then nothing is written.
    OutputError
        If the folder exists or cannot be made.
    """
    if path.exists():
        raise OutputError(f"{path} exists: remove it or name another with -o")
    unet, schedule = checkpoint.network(), Schedule()
    beside = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        beside.mkdir(parents=True)
        export_onnx(BothLabels(copy.deepcopy(unet), precision), beside / NETWORK, store_fp16)
        size = checkpoint.unet.image_size
        parity = compare(
            torch_denoiser(unet),
            OnnxDenoiser(beside / NETWORK),
            checkpoint.unet.in_channels,
            size,
            schedule,
        )
        parity.check(FP16_TOLERANCE if store_fp16 or precision == "fp16" else FP32_TOLERANCE)
        manifest = Manifest(
            name=name,
            modalities=checkpoint.modalities,
            scored=scored or checkpoint.modalities,
            grid=checkpoint.grid,
            schedule=schedule,
            L=min(600, schedule.T),
            clip=True,
            precision=precision,
            files={NETWORK: sha256(beside / NETWORK)},
            architecture=asdict(checkpoint.unet),
            provenance={
                "anofpdm": __version__,
                "torch": torch.__version__,
                "onnxruntime": version("onnxruntime"),
                "python": platform.python_version(),
                "data": dict(checkpoint.data),
                "training": checkpoint.training(),
                "iterations": checkpoint.step or None,
                "weights_stored_as": "fp16" if store_fp16 else precision,
            },
            parity=asdict(parity),
            model_card=model_card,
        )
        write_manifest(beside, manifest)
        beside.rename(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return parity
