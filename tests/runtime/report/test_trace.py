"""The curves that --trace writes, recomputed from itself and compared with the mask."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from nibabel.affines import voxel_sizes
from support import ROOT, needs_bf16

from anofpdm.runtime.bundle.bundle import DEFAULT, open_bundle
from anofpdm.runtime.bundle.options import Options
from anofpdm.runtime.cli.infer import main
from anofpdm.runtime.report.trace import trace
from anofpdm.runtime.segmenter import Segmenter

EXAMPLE = ROOT / "examples/flair.nii.gz"


@pytest.fixture
def volume(tmp_path):
    """Ten slices of the example, some of them with its lesion."""
    path = tmp_path / "in" / "volume.nii.gz"
    path.parent.mkdir()
    nib.save(nib.load(EXAMPLE).slicer[:, :, 16:26], path)
    return path


@pytest.mark.parametrize("preset", ["fast", "fastest-bf16"])
def test_trace_explains_the_mask(tmp_path, volume, preset):
    bundle = tmp_path / "bundle"
    shutil.copytree(DEFAULT, bundle)

    def traced(preset):
        arguments = [volume, "-o", tmp_path / "mask.nii.gz", "--trace", tmp_path / "trace.json",
                     "--preset", preset, "--bundle", bundle]  # fmt: skip
        done = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
        return json.loads((tmp_path / "trace.json").read_text())

    if preset.endswith("bf16"):
        needs_bf16()
    content = traced(preset)
    assert content["files_sha256"] == dict(open_bundle(bundle).manifest.files)
    assert content["preset"] == preset
    assert content["volumes"] == [volume.name]
    mask = np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj)
    marked = set(np.flatnonzero(mask.any(axis=(0, 1))).tolist())
    assert 0 < len(marked) < len(content["slices"])
    alone = {}
    for entry in content["slices"]:
        M, h, zero = (np.array(entry[name])[:, 0] for name in ("M", "MSE_h", "MSE_0"))
        assert len(M) == len(entry["t"])
        assert entry["t_e"] == [entry["t"][int(M.argmax())]]
        cosine = h @ zero / np.linalg.norm(h) / np.linalg.norm(zero)
        alignment = (h - zero - M).sum() / (2 * np.sqrt(zero.sum() * M.sum()))
        alone[entry["level"]] = (cosine, alignment)
        share = min(M.max() / content["M_max"][0], 1)
        assert entry["index"] == [round(round(share, 2) * 100)]
    spacing = voxel_sizes(nib.load(volume).affine)[2]
    width, decision = content["neighbours_mm"], content["logistic"]
    for entry in content["slices"]:
        near = [
            (2.0 ** -((2 * spacing * abs(level - entry["level"]) / (width or 1)) ** 2), *statistics)
            for level, statistics in alone.items()
            if level == entry["level"] or abs(level - entry["level"]) * spacing < width - 1e-9
        ]
        weights, cosines, aligned = np.array(near).T
        cosine, alignment = (np.average(values, weights=weights) for values in (cosines, aligned))
        np.testing.assert_allclose((entry["cosine"], entry["alignment"]), (cosine, alignment))
        log_odds = decision["alignment"] * alignment + decision["angle"] * np.arccos(cosine)
        log_odds += decision["intercept"] + decision["map_peak"] * entry["map_peak"]
        np.testing.assert_allclose(entry["log_odds"], log_odds, rtol=1e-6)
        np.testing.assert_allclose(entry["probability"], 1 / (1 + np.exp(-log_odds)))
        by_cosine = entry["cosine"] <= content["Cos_w"]
        unhealthy = by_cosine if content["decision"] == "cosine" else log_odds >= 0
        assert entry["unhealthy"] == unhealthy
        assert (entry["level"] in marked) == (entry["unhealthy"] and entry["pixels"] > 0)


def test_a_trace_says_what_was_fixed(volume):
    with Segmenter.load(options=Options(preset="fastest", Q=0.5)) as segmenter:
        segmentation = segmenter.segment(nib.load(volume), every_slice=True)
    content = trace(segmentation, "x")
    assert content["case"] == "x"
    assert (content["threshold"], content["every_slice"]) == (0.5, True)
    assert content["slices"]
    assert all(entry["Q"] == 0.5 and entry["index"] is None for entry in content["slices"])


def test_a_trace_that_cannot_be_written_leaves_no_mask(tmp_path):
    for name, message in (("no/trace.json", "does not exist"), ("m.nii.gz", "it is the mask")):
        arguments = [str(EXAMPLE), "-o", str(tmp_path / "m.nii.gz"), "--trace"]
        done = CliRunner().invoke(main, [*arguments, str(tmp_path / name)])
        assert done.exit_code == 2
        assert message in done.output
        assert done.output.count("\n") == 1
        assert list(tmp_path.iterdir()) == []
