"""The evidence that --trace writes, recomputed from itself and compared with the mask."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from support import ROOT, needs_bf16

from anofpdm.runtime.bundle.bundle import DEFAULT, open_bundle
from anofpdm.runtime.cli.infer import main

EXAMPLE = ROOT / "examples/simulated_flair.nii.gz"


@pytest.fixture
def volume(tmp_path):
    """Ten slices of the example, some of them with its lesion."""
    path = tmp_path / "in" / "volume.nii.gz"
    path.parent.mkdir()
    nib.save(nib.load(EXAMPLE).slicer[:, :, 32:42], path)
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
    trace = traced(preset)
    assert trace["files_sha256"] == dict(open_bundle(bundle).manifest.files)
    assert trace["preset"] == preset
    assert trace["volumes"] == [volume.name]
    mask = np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj)
    marked = set(np.flatnonzero(mask.any(axis=(0, 1))).tolist())
    assert 0 < len(marked) < len(trace["slices"])
    own = {}
    for one in trace["slices"]:
        M, h, zero = (np.array(one[name])[:, 0] for name in ("M", "MSE_h", "MSE_0"))
        assert len(M) == len(one["t"])
        assert one["t_e"] == [one["t"][int(M.argmax())]]
        cosine = h @ zero / np.linalg.norm(h) / np.linalg.norm(zero)
        alignment = (h - zero - M).sum() / (2 * np.sqrt(zero.sum() * M.sum()))
        own[one["level"]] = (cosine, alignment)
        share = min(M.max() / trace["M_max"][0], 1)
        assert one["index"] == [round(round(share, 2) * 100)]
    spacing, width, decision = 2.0, trace["neighbours_mm"], trace["logistic"]
    for one in trace["slices"]:
        near = [
            (2.0 ** -((2 * spacing * abs(level - one["level"]) / (width or 1)) ** 2), *told)
            for level, told in own.items()
            if level == one["level"] or abs(level - one["level"]) * spacing < width - 1e-9
        ]
        weights, cosines, aligned = np.array(near).T
        cosine, alignment = (np.average(told, weights=weights) for told in (cosines, aligned))
        np.testing.assert_allclose((one["cosine"], one["alignment"]), (cosine, alignment))
        log_odds = decision["alignment"] * alignment + decision["angle"] * np.arccos(cosine)
        log_odds += decision["intercept"] + decision["map_peak"] * one["map_peak"]
        np.testing.assert_allclose(one["log_odds"], log_odds, rtol=1e-6)
        np.testing.assert_allclose(one["probability"], 1 / (1 + np.exp(-log_odds)))
        by_cosine = one["cosine"] <= trace["Cos_w"]
        unhealthy = by_cosine if trace["decision"] == "cosine" else log_odds >= 0
        assert one["unhealthy"] == unhealthy
        assert (one["level"] in marked) == (one["unhealthy"] and one["pixels"] > 0)


def test_a_trace_that_cannot_be_written_leaves_no_mask(tmp_path):
    for trace, message in (("no/trace.json", "does not exist"), ("m.nii.gz", "it is the mask")):
        arguments = [str(EXAMPLE), "-o", str(tmp_path / "m.nii.gz"), "--trace"]
        done = CliRunner().invoke(main, [*arguments, str(tmp_path / trace)])
        assert done.exit_code == 2
        assert message in done.output
        assert done.output.count("\n") == 1
        assert list(tmp_path.iterdir()) == []
