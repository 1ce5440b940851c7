"""The example volumes and the cases of examples/failures.py are what they are said to be."""

import sys

import nibabel as nib
import numpy as np
import pytest
from support import ROOT


@pytest.fixture
def examples(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import failures
    import make_examples
    import picture

    yield failures, make_examples, picture
    for name in ("failures", "make_examples", "picture"):
        sys.modules.pop(name, None)


def test_the_simulated_volume_is_what_its_script_makes(examples, monkeypatch, tmp_path):
    _, make_examples, _ = examples
    shipped = make_examples.SIMULATED, make_examples.SIMULATED_MASK
    made = tmp_path / "flair.nii.gz", tmp_path / "mask.nii.gz"
    monkeypatch.setattr(make_examples, "SIMULATED", made[0])
    monkeypatch.setattr(make_examples, "SIMULATED_MASK", made[1])
    make_examples.simulate()
    for one, other in zip(made, shipped, strict=True):
        mine, theirs = nib.load(one), nib.load(other)
        assert mine.header == theirs.header
        # Another SciPy may round a value the other way.
        difference = np.abs(np.asarray(mine.dataobj, int) - np.asarray(theirs.dataobj, int))
        assert difference.max() <= 1
        assert (difference > 0).mean() < 1e-4


def test_the_cases_are_fainter_smaller_and_larger_than_the_example(examples):
    failures, make_examples, picture = examples
    flair = nib.load(make_examples.FLAIR)
    plain = np.asarray(flair.dataobj, float)
    usual = np.asarray(nib.load(make_examples.SIMULATED).dataobj, float)
    lesion = np.asarray(nib.load(make_examples.SIMULATED_MASK).dataobj) > 0
    (ms, drawn), *simulated = failures.cases().values()
    assert ms.get_filename() == str(make_examples.FLAIR)
    assert drawn.sum() == np.asarray(nib.load(make_examples.LESIONS).dataobj).sum() > 0
    faint, small, large = ((np.asarray(i.dataobj, float), where) for i, where in simulated)
    np.testing.assert_array_equal(faint[1], lesion)
    assert 1.1 < np.median(faint[0][lesion] / plain[lesion]) < 1.3
    assert np.median(usual[lesion] / plain[lesion]) > 1.5
    assert small[1].sum() < 0.1 * lesion.sum()
    assert small[1].sum() > 0
    for values, where in (small, large):
        assert np.median(values[where] / plain[where]) > 1.5
        far = plain > 0
        far[where] = False
        assert (values >= plain).all()
        assert np.median(values[far] / plain[far]) < 1.05
    # Algorithm 1 marks at most a tenth of the model's slice.
    grid = picture.Grid()
    _, on_slices = picture.on_grid(simulated[2][0], large[1], grid)
    assert on_slices.mean(axis=(1, 2)).max() > 0.1
    _, on_slices = picture.on_grid(nib.load(make_examples.SIMULATED), lesion, grid)
    assert on_slices.mean(axis=(1, 2)).max() < 0.1
