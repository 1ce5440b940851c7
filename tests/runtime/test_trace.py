"""The evidence that --trace writes, recomputed from itself and compared with the mask."""

import json

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from support import ROOT

from anofpdm.runtime.bundle import DEFAULT, open_bundle
from anofpdm.runtime.infer import main

EXAMPLE = ROOT / "examples/simulated_flair.nii.gz"


@pytest.fixture
def volume(tmp_path):
    """Ten slices of the example, some of them with its lesion."""
    path = tmp_path / "in" / "volume.nii.gz"
    path.parent.mkdir()
    nib.save(nib.load(EXAMPLE).slicer[:, :, 32:42], path)
    return path


def test_trace_explains_the_mask(tmp_path, volume):
    arguments = [volume, "-o", tmp_path / "mask.nii.gz", "--trace", tmp_path / "trace.json"]
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    trace = json.loads((tmp_path / "trace.json").read_text())
    bundle = open_bundle(DEFAULT)
    assert trace["files_sha256"] == dict(bundle.manifest.files)
    assert trace["preset"] == bundle.default
    assert trace["volumes"] == [volume.name]
    mask = np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj)
    marked = set(np.flatnonzero(mask.any(axis=(0, 1))).tolist())
    assert 0 < len(marked) < len(trace["slices"])
    assert any(one["left_early"] for one in trace["slices"])
    for one in trace["slices"]:
        M, h, zero = (np.array(one[name]).mean(axis=1) for name in ("M", "MSE_h", "MSE_0"))
        assert len(M) == len(one["t"])
        assert one["t_e"] == [one["t"][int(M.argmax())]]
        cosine = h @ zero / np.linalg.norm(h) / np.linalg.norm(zero)
        np.testing.assert_allclose(one["cosine"], cosine)
        by_cosine = one["cosine"] <= trace["Cos_w"]
        decision = trace["logistic"]
        score = (
            decision["intercept"]
            + decision["log_peak"] * np.log(one["peak"])
            + decision["alignment"] * one["alignment"]
        )
        unhealthy = by_cosine if trace["verdict"] == "cosine" else score >= 0
        probability = 1 / (1 + np.exp(-score))
        bounds = bundle.calibrations[bundle.default].healthy_leave.bounds
        left = len(M) < len(bounds)
        assert left == any(
            M[: k + 1].max() < bound for k, (bound,) in enumerate(bounds[:-1]) if k < len(M)
        )
        assert one["left_early"] == left
        np.testing.assert_allclose(one["probability"], 0 if left else probability)
        assert one["unhealthy"] == (unhealthy and not left)
        share = min(M.max() / trace["M_max"][0], 1)
        assert one["index"] == [round(round(share, 2) * 100)]
        assert (one["level"] in marked) == (one["unhealthy"] and one["pixels"] > 0)


def test_a_trace_says_what_was_fixed(tmp_path, volume):
    arguments = [volume, "-o", tmp_path / "m.nii.gz", "--trace", tmp_path / "t.json",
                 "--threshold", "0.5", "--every-slice", "--preset", "fastest"]  # fmt: skip
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    trace = json.loads((tmp_path / "t.json").read_text())
    assert (trace["threshold"], trace["every_slice"]) == (0.5, True)
    assert all(one["Q"] == 0.5 and one["index"] is None for one in trace["slices"])


def test_a_trace_that_cannot_be_written_leaves_no_mask(tmp_path):
    for trace, message in (("no/trace.json", "does not exist"), ("m.nii.gz", "it is the mask")):
        arguments = [str(EXAMPLE), "-o", str(tmp_path / "m.nii.gz"), "--trace"]
        done = CliRunner().invoke(main, [*arguments, str(tmp_path / trace)])
        assert done.exit_code == 2
        assert message in done.output
        assert done.output.count("\n") == 1
        assert list(tmp_path.iterdir()) == []
