"""The evidence that --trace writes, recomputed from itself and compared with the mask."""

import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from support import ROOT, needs_bf16

from anofpdm.runtime.bundle import DEFAULT, open_bundle, write_calibration
from anofpdm.runtime.calibration import HealthyLeave
from anofpdm.runtime.infer import main

EXAMPLE = ROOT / "examples/simulated_flair.nii.gz"


@pytest.fixture
def volume(tmp_path):
    """Ten slices of the example, some of them with its lesion."""
    path = tmp_path / "in" / "volume.nii.gz"
    path.parent.mkdir()
    nib.save(nib.load(EXAMPLE).slicer[:, :, 32:42], path)
    return path


def leaving(bundle, trace):
    """Gives the bundle's fastest preset a rule by which some of these slices leave."""
    third = float(np.median([max(m for (m,) in one["M"][:3]) for one in trace["slices"]]))
    bounds = tuple((third if k == 2 else 0.0,) for k in range(len(trace["slices"][0]["M"])))
    held = open_bundle(bundle)
    rule = HealthyLeave(bounds, 1.0, 1.0, 5.0, len(bounds))
    one = replace(held.calibrations["fastest"], healthy_leave=rule, neighbours_mm=0.0)
    write_calibration(held, "fastest", one, False)


@pytest.mark.parametrize("preset", ["fast", "fastest-bf16", "with a rule to leave"])
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
    elif preset != "fast":
        preset = "fastest"
        leaving(bundle, traced(preset))
    trace = traced(preset)
    held = open_bundle(bundle).calibrations[preset]
    assert trace["files_sha256"] == dict(open_bundle(bundle).manifest.files)
    assert trace["preset"] == preset
    assert trace["volumes"] == [volume.name]
    mask = np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj)
    marked = set(np.flatnonzero(mask.any(axis=(0, 1))).tolist())
    assert 0 < len(marked) < len(trace["slices"])
    own = {}
    bounds = held.healthy_leave.bounds if held.healthy_leave else ()
    for one in trace["slices"]:
        M, h, zero = (np.array(one[name])[:, 0] for name in ("M", "MSE_h", "MSE_0"))
        assert len(M) == len(one["t"])
        assert one["t_e"] == [one["t"][int(M.argmax())]]
        cosine = h @ zero / np.linalg.norm(h) / np.linalg.norm(zero)
        alignment = (h - zero - M).sum() / (2 * np.sqrt(zero.sum() * M.sum()))
        left = any(M[: k + 1].max() < bound for k, (bound,) in enumerate(bounds[:-1][: len(M)]))
        assert one["left_early"] == left
        own[one["level"]] = (cosine, alignment, left)
        share = min(M.max() / trace["M_max"][0], 1)
        assert one["index"] == [round(round(share, 2) * 100)]
    assert bool(bounds) == any(left for *_, left in own.values())
    spacing, width, decision = 2.0, trace["neighbours_mm"], trace["logistic"]
    for one in trace["slices"]:
        near = [
            (2.0 ** -((2 * spacing * abs(level - one["level"]) / (width or 1)) ** 2), *told[:2])
            for level, told in own.items()
            if level == one["level"] or abs(level - one["level"]) * spacing < width - 1e-9
        ]
        weights, cosines, aligned = np.array(near).T
        cosine, alignment = (np.average(told, weights=weights) for told in (cosines, aligned))
        np.testing.assert_allclose((one["cosine"], one["alignment"]), (cosine, alignment))
        log_odds = decision["alignment"] * alignment + decision["angle"] * np.arccos(cosine)
        log_odds += decision["intercept"] + decision["map_peak"] * one["map_peak"]
        np.testing.assert_allclose(one["log_odds"], log_odds, rtol=1e-6)
        left = own[one["level"]][2]
        probability = 0 if left else 1 / (1 + np.exp(-log_odds))
        np.testing.assert_allclose(one["probability"], probability)
        by_cosine = one["cosine"] <= trace["Cos_w"]
        unhealthy = by_cosine if trace["verdict"] == "cosine" else log_odds >= 0
        assert one["unhealthy"] == (unhealthy and not left)
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
