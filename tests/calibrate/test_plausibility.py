import numpy as np
import pytest

from anofpdm.calibrate.choose import Labels
from anofpdm.calibrate.plausibility import fit_plausibility


def cohort(shift=0.0, n=5, patients=6):
    """Curves around e^-3, with one patient shifted; every other slice is unhealthy and far off."""
    rng = np.random.default_rng(0)
    names = np.repeat([f"P{i}" for i in range(patients)], 8)
    unhealthy = np.arange(len(names)) % 2 == 1
    curves = -3 + 0.1 * rng.standard_normal((len(names), n))
    curves[names == "P0"] += shift
    return np.exp(curves + 5 * unhealthy[:, None])[..., None], Labels(unhealthy, names)


def test_reference_is_of_healthy_slices_alone():
    MSE_0, labels = cohort()
    limits = fit_plausibility(MSE_0, labels)
    healthy = np.log(MSE_0[~labels.unhealthy, :, 0])
    assert limits.mean == pytest.approx(healthy.mean(axis=0))
    assert limits.spread == pytest.approx(healthy.std(axis=0))


def test_limit_is_a_little_above_the_furthest_patient_as_seen_from_the_others():
    MSE_0, labels = cohort(shift=1.0)
    limits = fit_plausibility(MSE_0, labels)
    others = np.log(MSE_0[~labels.unhealthy & (labels.patients != "P0"), :, 0])
    of_patient = np.log(MSE_0[labels.patients == "P0", :, 0])
    off = np.abs((of_patient - others.mean(axis=0)) / others.std(axis=0)).mean(axis=1)
    rest = []
    for name in sorted(set(labels.patients) - {"P0"}):
        reference = np.log(MSE_0[~labels.unhealthy & (labels.patients != name), :, 0])
        mine = np.log(MSE_0[labels.patients == name, :, 0])
        z = (mine - reference.mean(axis=0)) / reference.std(axis=0)
        rest.append(np.median(np.abs(z).mean(axis=1)))
    assert limits.limit == pytest.approx(1.1 * max(np.median(off), *rest))


def test_two_patients_are_too_few():
    MSE_0, labels = cohort(patients=2)
    assert fit_plausibility(MSE_0, labels) is None
