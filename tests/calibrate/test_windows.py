"""Calibration with neighbour windows and flip test-time augmentation decides as the runtime."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from support import (
    bundle,
    call,
    fading_network,
    head,
    recalibrated,
    save,
    toy_network,
    write_toy_bundle,
)

from anofpdm.calibrate.choose import Labels, candidate, choose, cross_validated, decided_by
from anofpdm.calibrate.cli import main as calibrate
from anofpdm.calibrate.decision_fit import fit, leave_patients_out
from anofpdm.calibrate.early_stop import fit_rule
from anofpdm.calibrate.evaluation import evaluate
from anofpdm.calibrate.sweep import sweep
from anofpdm.calibrate.windows import neighbour_windows
from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.bundle.bundle import NETWORK, open_bundle
from anofpdm.runtime.bundle.options import Options
from anofpdm.runtime.errors import CohortError
from anofpdm.runtime.method.decision import LogisticDecision, SliceStatistics
from anofpdm.runtime.method.early_stop import StopRule
from anofpdm.runtime.method.process import Process, Slice, SlicePosition
from anofpdm.runtime.method.schedule import Schedule
from anofpdm.runtime.refine.masks import drop_small
from anofpdm.runtime.refine.through_plane import Refinement
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.volume.grid import Grid
from anofpdm.train.cohort import Case
from anofpdm.train.dataset import SliceRecord, SliceSet, open_sliceset, writing
from anofpdm.train.prepare import prepare

WIDTH, PROCESS = 10.0, Process(Schedule(), 301, 60)


def sliceset(patients=4, depth=6, spacing=4.0, seed=0):
    """Heads whose unhealthy slices, the upper half, are brighter."""
    rng, n = np.random.default_rng(seed), patients * depth
    raw = rng.integers(0, 200, (n, 1, 32, 32), dtype=np.uint8)
    records = []
    for i in range(n):
        patient, level = divmod(i, depth)
        sick = level >= depth // 2
        raw[i, 0, 8:20, 8:20] += np.uint8(40 * sick)
        records.append(SliceRecord(f"P{patient}", level + 3, "val", sick, True, spacing))
    masks = np.zeros((n, 32, 32), np.uint8)
    masks[:, 10:18, 10:18] = np.array([record.unhealthy for record in records])[:, None, None]
    manifest = bundle().manifest
    rows = tuple(range(n))
    return SliceSet(manifest.modalities, manifest.grid, {}, tuple(records), rows, raw, masks)


def labels_of(slices):
    return Labels(slices.unhealthy, slices.patients, neighbour_windows(slices.slices(), WIDTH))


def calibrated(slices, flip_tta=False, guided_pixels=0):
    refinement = Refinement(WIDTH, flip_tta, guided_pixels)
    curves = sweep(slices, toy_network, PROCESS, (2.0,), (0,), refinement=refinement)
    labels = labels_of(slices)
    chosen = candidate(curves, 301, 2.0, labels)
    # Thresholds in the middle, so that there are decisions of both kinds.
    statistics = labels.window_means(curves.statistics(0))
    decision = LogisticDecision(0.0, 1.0, 2.0, 0.5)
    middle = float(np.median(decision.log_odds(statistics)))
    Cos_w = float(np.median(statistics.cosine))
    return (
        curves,
        labels,
        replace(chosen, Cos_w=Cos_w, logistic=replace(decision, intercept=-middle)),
    )


def test_averages_are_over_slices_of_one_scan_that_are_near():
    positions = [(0, 0), (0, 1), (0, 3), (1, 1), (1, 2)]

    def means(values, spacing_mm, keep):
        slices = [
            Slice(i, np.zeros((1, 1, 1)), volume, SlicePosition(level, spacing_mm))
            for i, (volume, level) in enumerate(positions)
        ]
        names = np.array([f"P{volume}" for volume, _ in positions])
        labels = Labels(np.zeros(5, bool), names, neighbour_windows(slices, WIDTH)).take(keep)
        peak = np.arange(5.0)[keep]
        averaged = labels.window_means(SliceStatistics(values, -values, peak))
        np.testing.assert_array_equal(averaged.map_peak, peak)
        np.testing.assert_allclose(averaged.alignment, -averaged.cosine)
        return averaged.cosine

    values = np.array([1.0, 2.0, 8.0, 100.0, 300.0])
    near, far = 2.0 ** -(0.8**2), 2.0 ** -(1.6**2)
    want = [(1 + 2 * near) / (1 + near), (2 + near + 8 * far) / (1 + near + far),
            (8 + 2 * far) / (1 + far), (100 + 300 * near) / (1 + near),
            (300 + 100 * near) / (1 + near)]  # fmt: skip
    np.testing.assert_allclose(means(values, 4.0, np.ones(5, bool)), want)
    kept = np.array([True, False, True, True, True])
    np.testing.assert_allclose(means(values[kept], 4.0, kept)[:2], [1.0, 8.0])
    np.testing.assert_allclose(means(values[kept], 4.0, kept)[2:], want[3:])
    np.testing.assert_array_equal(means(values, 0.0, np.ones(5, bool)), values)  # not known


def test_a_patients_scans_are_told_apart():
    records = [("A", 3, 5.0), ("A", 4, 5.0), ("A", 1, 5.0), ("A", 2, 4.0), ("B", 3, 4.0),
               ("B", 5, 4.0)]  # fmt: skip
    slices = sliceset(1, 6)
    slices = replace(slices, records=tuple(
        SliceRecord(name, level, "val", False, True, mm) for name, level, mm in records
    ))  # fmt: skip
    assert [item.volume for item in slices.slices()] == [0, 0, 1, 2, 3, 3]
    assert [item.position for item in slices.slices()] == [
        SlicePosition(level, mm) for _, level, mm in records
    ]
    assert [item.key for item in slices.slices()] == list(range(6))


@pytest.mark.parametrize("decision", ["calibrated", "cosine"])
@pytest.mark.parametrize("flip_tta", [False, True])
@pytest.mark.parametrize("guided_pixels", [0, 2])
def test_decisions_are_those_of_the_runtime(decision, flip_tta, guided_pixels):
    """Chosen from curves, given slice by slice: the same, and by the same numbers."""
    slices = sliceset()
    curves, labels, chosen = calibrated(slices, flip_tta, guided_pixels)
    guided_mm = guided_pixels * slices.grid.pixel_mm
    toy = recalibrated(
        bundle(), decision=decision, Cos_w=chosen.Cos_w, logistic=chosen.logistic,
        neighbours_mm=WIDTH, flip_tta=flip_tta, guided_mm=guided_mm,
    )  # fmt: skip
    segmenter = Segmenter(toy, NumpyBackend(toy_network))
    results = sorted(segmenter.segment_slices(slices.slices()), key=lambda result: result.key)
    statistics = labels.window_means(curves.statistics(0))
    for name in ("cosine", "alignment", "map_peak"):
        got = [getattr(result, name) for result in results]
        np.testing.assert_allclose(got, getattr(statistics, name), rtol=1e-6, atol=1e-9)
        assert len(set(got)) == len(got)
    got = [result.unhealthy for result in results]
    assert got == decided_by(curves, labels, chosen, decision).tolist()
    assert 0 < sum(got) < len(got)


def test_accuracies_are_those_of_averages():
    slices = sliceset()
    curves, labels, _ = calibrated(slices)
    chosen = candidate(curves, 301, 2.0, labels)
    weights = 2.0 ** -((2 * 4.0 * np.abs(np.subtract.outer(range(6), range(6))) / WIDTH) ** 2)
    weights[np.abs(np.subtract.outer(range(6), range(6))) > 2] = 0
    alone = curves.statistics(0)
    means = [
        np.concatenate([weights @ part / weights.sum(axis=1) for part in values.reshape(4, 6)])
        for values in (alone.cosine, alone.alignment)
    ]
    averaged = SliceStatistics(*means, alone.map_peak)
    right = []
    for kept, out in leave_patients_out(labels.patients, labels.unhealthy):
        decision = fit(averaged.take(kept), labels.unhealthy[kept])
        right.append((decision.log_odds(averaged.take(out)) >= 0) == labels.unhealthy[out])
    assert chosen.calibrated_accuracy == pytest.approx(np.mean(right))
    want = fit(averaged, labels.unhealthy).log_odds(averaged)
    np.testing.assert_allclose(chosen.logistic.log_odds(averaged), want, rtol=1e-6)
    assert not np.allclose(fit(alone, labels.unhealthy).log_odds(averaged), want, rtol=1e-3)
    cosines = decided_by(curves, labels, chosen, "cosine")
    assert chosen.cosine_accuracy == pytest.approx((cosines == labels.unhealthy).mean())
    assert choose({301: curves}, labels, "cosine").best.cosine_accuracy == chosen.cosine_accuracy


def test_every_kth_slice_is_compared_with_its_neighbours_in_the_window():
    slices = sliceset()
    _, _, chosen = calibrated(slices)
    toy = recalibrated(bundle(), decision="calibrated", logistic=chosen.logistic,
                       neighbours_mm=WIDTH, flip_tta=True)  # fmt: skip
    seen = []

    def counted(x_t, t):
        seen.append(len(t))
        return toy_network(x_t, t)

    whole = evaluate(Segmenter(toy, NumpyBackend(toy_network)), slices)
    some = evaluate(Segmenter(toy, NumpyBackend(counted, 1)), slices, every=8)
    assert some.slices == whole.slices[::8]
    assert len(some.slices) == 3
    assert sum(seen) < 6 * 24  # not all are processed for it
    alone = evaluate(Segmenter(toy, NumpyBackend(toy_network)), slices.take(range(0, 24, 8)))
    assert [s.probability for s in alone.slices] != [s.probability for s in some.slices]


def test_prepared_slices_have_their_distance(tmp_path):
    affine = np.diag([7.5, 7.5, 3.5, 1.0])
    scan = save(tmp_path / "scan.nii.gz", head(), affine)
    mask = save(tmp_path / "mask.nii.gz", (head() > 150).astype(np.uint8), affine)
    case = Case("A", {"a": scan}, mask, split="val")
    prepare([case], ("a",), Grid(32, 7.5), tmp_path / "slices", {}, lambda done, total: None)
    made = open_sliceset(tmp_path / "slices")
    assert {record.slice_mm for record in made.records} == {3.5}
    assert nib.load(scan).header.get_zooms()[2] == pytest.approx(3.5)


def test_the_command_needs_the_distance_of_slices(tmp_path):
    """Slices that were prepared by an earlier version have none."""
    slices = sliceset(spacing=0.0)
    model = write_toy_bundle(tmp_path / "model", calibration=True)
    with writing(tmp_path / "slices", slices.modalities, slices.grid, {}) as writer:
        for i, record in enumerate(slices.records):
            writer.add(record, slices.x0(i), slices.mask(i))
    before = (model / "calibration.json").read_bytes()
    output = call(calibrate, tmp_path / "slices", "--bundle", model, "--neighbours", 10, code=2)
    assert "the slices have no slice distance" in output
    assert (model / "calibration.json").read_bytes() == before
    assert open_bundle(model).manifest.files[NETWORK]
    with pytest.raises(CohortError, match="have no slice distance"):
        evaluate(Segmenter(recalibrated(bundle(), neighbours_mm=10.0), NumpyBackend(toy_network)),
                 slices)  # fmt: skip
    for lonely in (["--neighbours", 10], ["--flip-tta"]):
        options = [tmp_path / "slices", "--bundle", model, "--every", 2, *lonely]
        assert "leave --every out" in call(calibrate, *options, code=2)
    for bad in ("-1", "1000", "wide"):
        call(calibrate, tmp_path / "slices", "--bundle", model, "--neighbours", bad, code=2)


@pytest.mark.parametrize("decision", ["calibrated", "cosine"])
def test_early_stop_is_refitted_and_tested_with_neighbours(decision):
    """A rule's thresholds and accuracy, against the runtime that stops by it."""
    slices = sliceset(6, 8)
    process = replace(PROCESS, L=401, stride=10)
    curves = sweep(slices, fading_network, process, (2.0,), (0,), refinement=Refinement(WIDTH))
    labels = labels_of(slices)
    full = candidate(curves, 401, 2.0, labels)
    stop = fit_rule(curves, labels, full, decision, StopRule(0.9, 2))
    steps = stop.rule.steps(curves.M[:, 0])
    assert len(set(steps.tolist())) > 1
    toy = recalibrated(
        bundle(process=("ddim", 401, 10, "even")), decision=decision, early_stop=stop,
        neighbours_mm=WIDTH,
    )  # fmt: skip
    segmenter = Segmenter(toy, NumpyBackend(fading_network), options=Options(early_stop=True))
    results = sorted(segmenter.segment_slices(slices.slices()), key=lambda result: result.key)
    assert [len(result.M) for result in results] == steps.tolist()
    called_unhealthy = np.array([result.unhealthy for result in results])
    if decision == "cosine":  # the threshold is the best one on these very slices
        assert (called_unhealthy == slices.unhealthy).mean() == pytest.approx(stop.accuracy)
    alone = fit_rule(curves, replace(labels, windows=None), full, decision, StopRule(0.9, 2))
    statistics = labels.window_means(curves.statistics(0, steps))
    for name in ("cosine", "alignment"):
        got = [getattr(result, name) for result in results]
        np.testing.assert_allclose(got, getattr(statistics, name), rtol=1e-5, atol=1e-6)
    # t_e is kept everywhere, and with it the map whose peak is that of the full sweep.
    np.testing.assert_allclose(
        [result.map_peak for result in results], statistics.map_peak, rtol=1e-5
    )
    if decision == "calibrated":
        want = cross_validated(statistics, labels)
        assert stop.accuracy == pytest.approx(want)
        assert stop.logistic == fit(statistics, labels.unhealthy)
    else:
        assert stop.Cos_w != alone.Cos_w


def test_the_area_under_precision_and_recall_is_that_of_the_map_that_is_cut():
    """Over the unhealthy slices' foreground; with a guided filter it is another one."""
    slices, areas = sliceset(), []
    for guided_mm in (0.0, 20.0):
        toy = recalibrated(bundle(), neighbours_mm=WIDTH, flip_tta=True, guided_mm=guided_mm)
        ours = Segmenter(toy, NumpyBackend(toy_network))
        scores, lesion = [], []
        for result in ours.segment_slices(slices.slices()):
            if slices.records[result.key].unhealthy:
                foreground = slices.x0(result.key)[0] > -0.95
                scores.append(result.smoothed[foreground])
                lesion.append(slices.mask(result.key)[foreground])
                above = drop_small((result.smoothed >= result.Q) & (result.smoothed > 0))
                np.testing.assert_array_equal(result.mask, above)
        areas.append(evaluate(ours, slices).unhealthy.auprc)
        want = average_precision_score(np.concatenate(lesion), np.concatenate(scores))
        assert areas[-1] == pytest.approx(want, rel=1e-6)
    assert areas[0] != areas[1]
