import math

import numpy as np
from scipy import stats

from anofpdm.runtime.method.noise import slice_noise

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


def philox(counter, key):
    """Philox 4x64-10, from the description in Salmon et al. 2011."""
    whole = 2**64
    for _ in range(10):
        low0 = counter[0] * 0xD2E7470EE14C6C93
        low2 = counter[2] * 0xCA5A826395121157
        counter = [
            low2 // whole ^ counter[1] ^ key[0],
            low2 % whole,
            low0 // whole ^ counter[3] ^ key[1],
            low0 % whole,
        ]
        key = [(key[0] + 0x9E3779B97F4A7C15) % whole, (key[1] + 0xBB67AE8584CAA73B) % whole]
    return counter


def test_philox_here_gives_the_published_known_answer():
    """kat_vectors of Random123, philox4x64 with 10 rounds: all zero."""
    assert [f"{word:016x}" for word in philox([0] * 4, [0] * 2)] == [
        "16554d9eca36314c", "db20fe9d672d0fdc", "d7e772cee186176b", "7e68b68aec7ba23b",
    ]  # fmt: skip


def test_bits_are_philox_of_seed_slice_and_timestep():
    seed, key, t = 11, 42, 301
    wanted = []
    for block in (1, 2, 3):
        words = philox([block, 0, 0, t], [seed, key])
        for one, two in (words[:2], words[2:]):
            u1, u2 = ((word >> 11) * 2.0**-53 + 2.0**-54 for word in (one, two))
            radius, angle = math.sqrt(-2 * math.log(u1)), 2 * math.pi * u2
            wanted += [radius * math.cos(angle), radius * math.sin(angle)]
    np.testing.assert_allclose(slice_noise(seed, key, t, (11,)), wanted[:11], rtol=1e-6)
