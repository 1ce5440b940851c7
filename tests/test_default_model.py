"""The embedded model on patients that it has not seen, and on the example."""

import nibabel as nib
import numpy as np
import pytest
from support import ROOT, shared

from anofpdm import Segmenter
from anofpdm.calibrate.evaluation import evaluate
from anofpdm.runtime.sliceset import open_sliceset
from anofpdm.train.cohort import assign_splits, read_cohort
from anofpdm.train.prepare import prepare


def test_the_simulated_lesion_of_the_example_is_found():
    image = nib.load(ROOT / "examples/simulated_flair.nii.gz")
    lesion = np.asarray(nib.load(ROOT / "examples/simulated_mask.nii.gz").dataobj) > 0
    mask = Segmenter.load().segment(image).mask.astype(bool)
    assert mask[lesion].mean() > 5 * mask[~lesion].mean()
    assert 2 * (mask & lesion).sum() / (mask.sum() + lesion.sum()) > 0.4


@pytest.mark.slow
@pytest.mark.shared
def test_dice_on_unseen_patients(tmp_path):
    """Mean Dice of 0.52 on the unhealthy slices of the test split is what was promised."""
    segmenter = Segmenter.load()
    cases = assign_splits(read_cohort(shared("data", "lgg"), ("flair",)), 0)
    cases = [case for case in cases if case.split == "test"]
    grid = segmenter.bundle.manifest.grid
    prepare(cases, ("flair",), grid, tmp_path / "slices", {}, lambda done, total: None)
    found = evaluate(segmenter, open_sliceset(tmp_path / "slices").split("test"))
    assert sum(row.unhealthy for row in found.slices) == 129
    assert found.unhealthy.dice >= 0.52
