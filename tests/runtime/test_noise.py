import numpy as np
from scipy import stats

from anofpdm.runtime.noise import slice_noise

SHAPE = (1, 64, 64)


def test_depends_on_what_it_is_for_and_on_nothing_else():
    first = slice_noise(3, 5, 7, SHAPE)
    np.random.default_rng().standard_normal(10)
    slice_noise(0, 0, 1, SHAPE)
    assert np.array_equal(first, slice_noise(3, 5, 7, SHAPE))


def test_other_seeds_slices_and_timesteps_are_uncorrelated():
    base = slice_noise(3, 5, 7, SHAPE).ravel()
    for other in ((4, 5, 7), (3, 6, 7), (3, 5, 8)):
        correlation = np.corrcoef(base, slice_noise(*other, SHAPE).ravel())[0, 1]
        assert abs(correlation) < 5 / np.sqrt(base.size)


def test_is_standard_normal():
    assert stats.kstest(slice_noise(0, 1, 2, (100_000,)), "norm").pvalue > 1e-3
