"""Writing a checkpoint as a bundle, verified against PyTorch."""

import copy
import platform
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from anofpdm import __version__
from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.backends.cpu.onnxruntime import OnnxDenoiser
from anofpdm.runtime.bundle.bundle import NETWORK, NETWORK_FP16, Manifest
from anofpdm.runtime.errors import BundleError, OutputError, ParityError
from anofpdm.runtime.method.schedule import Schedule
from anofpdm.runtime.util.files import sha256
from anofpdm.train.checkpoint import Checkpoint
from anofpdm.train.unet import UNet

from .both_labels import BothLabels, torch_denoiser
from .bundle_update import write_manifest
from .onnx_file import export_onnx
from .parity import FP16_TOLERANCE, FP32_TOLERANCE, Parity, Trial, compare
from .shared_weights import share_weights


def write_bundle(
    checkpoint: Checkpoint,
    path: Path,
    *,
    name: str,
    fp16: bool = True,
    store_fp16: bool = False,
    scored: tuple[str, ...] | None = None,
    model_card: str = "",
) -> Mapping[str, Parity]:
    """Export the EMA network to a bundle that is not calibrated yet.

    Parameters
    ----------
    path : the bundle's folder; must not exist
    name : of the model
    fp16 : whether to add a network typed in float16, for GPUs
    store_fp16 : whether the float32 network stores its weights in float16, see
        :func:`anofpdm.export.onnx_file.export_onnx`
    scored : the modalities that the anomaly map is made of; None for all
    model_card : Markdown

    Returns
    -------
    parity of each network with PyTorch, by file name

    Raises
    ------
    ParityError
        If ONNX Runtime differs from PyTorch; then nothing is written.
    OutputError
        If the folder exists or cannot be made.
    """
    if path.exists():
        raise OutputError(f"{path} exists: remove it or name another with -o")
    unet, schedule = checkpoint.network(), Schedule()
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        temporary.mkdir(parents=True)
        network = BothLabels(copy.deepcopy(unet), "fp32")
        export_onnx(network, temporary / NETWORK, store_fp16)
        parity = {NETWORK: _compare(unet, temporary / NETWORK, schedule)}
        parity[NETWORK].check(FP16_TOLERANCE if store_fp16 else FP32_TOLERANCE)
        if fp16:
            parity[NETWORK_FP16] = _add_fp16(unet, temporary / NETWORK_FP16, schedule, store_fp16)
        manifest = Manifest(
            name=name,
            modalities=checkpoint.modalities,
            scored=scored or checkpoint.modalities,
            grid=checkpoint.grid,
            schedule=schedule,
            L=min(600, schedule.T),
            clip=True,
            precision="fp32",
            files={name: sha256(temporary / name) for name in parity},
            architecture=asdict(checkpoint.unet),
            provenance={
                "anofpdm": __version__,
                "torch": torch.__version__,
                "onnxruntime": version("onnxruntime"),
                "python": platform.python_version(),
                "data": dict(checkpoint.data),
                "training": checkpoint.training(),
                "iterations": checkpoint.step or None,
                "weights_stored_as": "fp16" if store_fp16 else "fp32",
            },
            parity={name: asdict(differences) for name, differences in parity.items()},
            model_card=model_card,
        )
        write_manifest(temporary, manifest)
        temporary.rename(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return parity


def _compare(unet: UNet, path: Path, schedule: Schedule) -> Parity:
    trial = Trial.short(unet.config.in_channels, unet.config.image_size, schedule)
    exported = NumpyBackend(OnnxDenoiser(path), 3)
    return compare(NumpyBackend(torch_denoiser(unet), 3), exported, trial)


def _add_fp16(unet: UNet, path: Path, schedule: Schedule, store_fp16: bool) -> Parity:
    """Export the float16 network; its weights are shared if the float32 one stores float16."""
    otherwise = "nothing was written: --no-fp16 leaves this network out"
    export_onnx(BothLabels(copy.deepcopy(unet), "fp16"), path)
    if store_fp16:
        share_weights(path, path.with_name(NETWORK))
    try:
        parity = _compare(unet, path, schedule)
    except BundleError as error:
        raise ParityError(
            f"{path.name} gives infinite or undefined predictions in float16; {otherwise}"
        ) from error
    parity.check(FP16_TOLERANCE, path.name, otherwise=otherwise)
    return parity
