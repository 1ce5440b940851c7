"""The embedded model on patients that it has not seen, and on the example."""

import nibabel as nib
import numpy as np
import pytest
from support import ROOT, SUMMATION, shared

from anofpdm import Options, Segmenter
from anofpdm.calibrate.evaluation import evaluate
from anofpdm.train.cohort import assign_splits, read_cohort
from anofpdm.train.dataset import open_sliceset
from anofpdm.train.prepare import prepare


@pytest.mark.slow
def test_a_mask_depends_on_volume_bundle_and_seed_alone():
    """Not on the batch, other volumes or threads, but for the order in which the network sums.

    That changes predictions by SUMMATION of the largest. M_t is the mean square of a difference
    that is some 0.02 of it: it changes by 2 * SUMMATION / 0.02 at most (Cauchy-Schwarz), and maps
    likewise, so that a voxel in a thousand may flip. Another seed changes M_t by more.
    """
    image, other = (
        nib.load(ROOT / f"examples/{name}.nii.gz").slicer[:, :, 26:29]
        for name in ("flair", "flair_before")
    )
    options = Options(preset="fastest")
    want = Segmenter.load(options=options, threads=1, slots=1).segment(image, every_slice=True)
    assert want.mask.any()
    tolerance = 2 * SUMMATION / 0.02
    for threads, slots in ((1, 3), (2, 1), (2, 16)):
        segmenter = Segmenter.load(options=options, threads=threads, slots=slots)
        alone = segmenter.segment(image, every_slice=True)
        among = list(segmenter.segment_many([other, image, other], every_slice=True))[1]
        for got in (alone, among):
            for result, first in zip(got.slices, want.slices, strict=True):
                np.testing.assert_allclose(result.M, first.M, rtol=tolerance)
            assert (got.mask != want.mask).sum() <= want.mask.sum() / 1000
    reseeded = Segmenter.load(options=options, seed=1).segment(image, every_slice=True)
    assert not np.allclose(reseeded.slices[0].M, want.slices[0].M, rtol=tolerance)


@pytest.mark.slow
@pytest.mark.shared
def test_dice_on_unseen_patients(tmp_path):
    """What the model card promises, with room for another machine's rounding."""
    segmenter = Segmenter.load()
    cases = assign_splits(read_cohort(shared("data", "lgg"), ("flair",)), 0)
    cases = [case for case in cases if case.split == "test"]
    grid = segmenter.bundle.manifest.grid
    prepare(cases, ("flair",), grid, tmp_path / "slices", {}, lambda done, total: None)
    evaluation = evaluate(segmenter, open_sliceset(tmp_path / "slices").split("test"))
    assert sum(row.unhealthy for row in evaluation.slices) == 129
    assert evaluation.unhealthy.dice >= 0.57
    assert evaluation.unhealthy.auprc >= 0.67
    assert evaluation.accuracy >= 0.80
