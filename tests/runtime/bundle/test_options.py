"""Which calibration a preset is, how options change it, and which options are refused."""

from dataclasses import replace

import pytest
from support import bundle, recalibrated, toy_network

from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.bundle.calibration import Candidate, EarlyStop, PeakReport
from anofpdm.runtime.bundle.options import Options, resolve
from anofpdm.runtime.errors import AnofpdmError, BundleError, OptionsError
from anofpdm.runtime.method.decision import LogisticDecision
from anofpdm.runtime.segmenter import Segmenter

SAFE = EarlyStop(0.8, 3, 0.5, LogisticDecision(0.6, 1.0, 1.0), (0.7,), 0.995, 0.9, 0.9, 4.0, 6)


@pytest.fixture
def three():
    toy = bundle()
    fast = toy.calibrations["fast"]
    exact = replace(fast, conditions=toy.conditions("ddim", 301, 1))
    ddpm = replace(fast, conditions=toy.conditions("ddpm", 301, 60), anomaly_map="last")
    return replace(toy, calibrations={"exact": exact, "fast": fast, "ddpm-last": ddpm})


@pytest.mark.parametrize(
    ("options", "preset"),
    [
        (Options(), "fast"),
        (Options(preset="exact"), "exact"),
        (Options(preset="ddpm-last"), "ddpm-last"),
    ],
)
def test_options_pick_a_calibration(three, options, preset):
    plan = resolve(three, options)
    conditions = three.calibrations[preset].conditions
    assert plan.preset == preset
    assert (plan.process.encoding, plan.process.stride) == (
        conditions.encoding, conditions.stride,
    )  # fmt: skip
    assert plan.rule.anomaly_map == ("last" if preset == "ddpm-last" else "aggregate")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(preset="slow"), "has no preset 'slow': it has exact, fast, ddpm-last"),
        (Options(w=3.0), "not calibrated for w = 3, but for 2"),
        (Options(early_stop=True), "holds no early stop"),
        (Options(anomaly_map="mean"), "anomaly_map must be"),
        (Options(sub_map="mean"), "sub_map must be"),
        (Options(t_e_ratio=0.0), "t_e_ratio must be positive"),
        (Options(t_e_ratio=float("nan")), "t_e_ratio must be positive"),
        (Options(Q=float("inf")), "must be a finite number"),
        (Options(Q=-0.1), "must be a finite number from 0"),
    ],
)
def test_options_that_no_calibration_has(three, options, message):
    with pytest.raises(AnofpdmError, match=message) as caught:
        resolve(three, options)
    assert "\n" not in str(caught.value)


def test_another_precision_needs_another_calibration():
    toy = bundle()
    changed = replace(toy, manifest=replace(toy.manifest, precision="fp16"))
    with pytest.raises(BundleError, match="made with precision fp32, the bundle has fp16"):
        resolve(changed, Options())


def test_the_map_may_be_chosen_without_another_calibration():
    toy = bundle()
    assert resolve(toy, Options(anomaly_map="last")).rule.anomaly_map == "last"


def test_a_safe_stop_is_on_and_an_unsafe_one_off_unless_chosen():
    toy = recalibrated(bundle(), early_stop=SAFE)
    assert resolve(toy, Options()).stop == SAFE.rule
    assert resolve(toy, Options()).calibration.Cos_w == 0.5
    assert resolve(toy, Options()).calibration.M_max == (0.7,)
    assert resolve(toy, Options(early_stop=False)).stop is None
    assert resolve(toy, Options(early_stop=False)).calibration.Cos_w == 2.0
    for unsafe in (replace(SAFE, agreement=0.98), replace(SAFE, accuracy=0.89)):
        toy = recalibrated(toy, early_stop=unsafe)
        assert resolve(toy, Options()).stop is None
        assert resolve(toy, Options(early_stop=True)).stop == SAFE.rule
        assert resolve(toy, Options(early_stop=True)).calibration.logistic == SAFE.logistic


def test_beyond_t_e_nothing_stops_early():
    toy = recalibrated(bundle(), early_stop=SAFE)
    assert resolve(toy, Options(t_e_ratio=2.0)).stop is None
    with pytest.raises(BundleError, match="no early stop"):
        resolve(toy, Options(t_e_ratio=2.0, early_stop=True))


def test_another_w_brings_its_own_thresholds():
    logistic = LogisticDecision(0.9, 2.0, 3.0)
    other = Candidate(301, 8.0, 0.7, 0.8, logistic, 0.8, (0.3,))
    elsewhere = Candidate(601, 9.0, 0.7, 0.8, logistic, 0.8, (0.3,))
    toy = recalibrated(
        bundle(),
        candidates=(other, elsewhere),
        early_stop=SAFE,
        peaks=PeakReport(1.0, 301.0, 301.0),
        warnings=("no peak",),
    )
    plan = resolve(toy, Options(w=8.0))
    calibration = plan.calibration
    assert (calibration.w, calibration.Cos_w, calibration.logistic) == (8.0, 0.7, logistic)
    assert calibration.M_max == (0.3,)
    assert (calibration.peaks, calibration.warnings) == (None, ())
    assert plan.stop is None
    with pytest.raises(BundleError, match="not calibrated for w = 9, but for 8"):
        resolve(toy, Options(w=9.0))


def test_impossible_segmenters():
    with pytest.raises(OptionsError, match="seed must be at least 0, not -1"):
        Segmenter(bundle(), NumpyBackend(toy_network), seed=-1)
    with pytest.raises(OptionsError, match="slots must be at least 1, not 0"):
        NumpyBackend(toy_network, 0)


def test_segmenters_refuse_before_they_work():
    with pytest.raises(BundleError, match="no preset"):
        Segmenter(bundle(), NumpyBackend(toy_network), options=Options(preset="x"))


def test_with_another_map_the_cosine_decides():
    """The calibrated decision knows the peak of the map that it was calibrated with."""
    logistic = LogisticDecision(0.9, 2.0, 3.0, 1.0)
    rules = {"decision": "calibrated", "logistic": logistic, "early_stop": SAFE}
    for usual, other in (("aggregate", "last"), ("last", "aggregate")):
        toy = recalibrated(bundle(), anomaly_map=usual, **rules)
        for same in ({}, {"anomaly_map": usual, "Q": 0.1}):
            assert resolve(toy, Options(**same)).calibration.decision == "calibrated"
            assert resolve(toy, Options(**same)).stop == SAFE.rule
        for changed in ({"anomaly_map": other}, {"sub_map": "gradient"}, {"t_e_ratio": 0.5}):
            plan = resolve(toy, Options(**changed))
            assert (plan.calibration.decision, plan.stop) == ("cosine", None)
            assert plan.as_json()["decision"] == "cosine"
            with pytest.raises(BundleError, match="no early stop"):
                resolve(toy, Options(early_stop=True, **changed))
