import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score
from support import bundle, labelled, recalibrated, toy_network

from anofpdm.calibrate.choose import choose
from anofpdm.calibrate.decision_fit import best_threshold
from anofpdm.calibrate.evaluation import evaluate
from anofpdm.calibrate.report import report
from anofpdm.calibrate.sweep import Curves, sweep, sweeps
from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend, NumpySlots
from anofpdm.runtime.backends.scheduler import run
from anofpdm.runtime.errors import CohortError
from anofpdm.runtime.method.accumulator import AnomalyAccumulator
from anofpdm.runtime.method.anomaly_map import MapRule
from anofpdm.runtime.method.decision import LogisticDecision, cosine
from anofpdm.runtime.method.process import Process, Slice
from anofpdm.runtime.method.schedule import Schedule
from anofpdm.runtime.refine.masks import median
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.volume.plausibility import Plausibility
from anofpdm.train.dataset import SliceRecord, SliceSet


def sliceset(n=12, channels=1, seed=0, drawn=True):
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (n, channels, 32, 32), dtype=np.uint8)
    masks = np.zeros((n, 32, 32), np.uint8)
    masks[::2, 10:18, 10:18] = 1
    records = tuple(SliceRecord(f"P{i // 3}", i, "val", i % 2 == 0, drawn) for i in range(n))
    manifest = bundle(channels=channels).manifest
    rows = tuple(range(n))
    return SliceSet(manifest.modalities, manifest.grid, {}, records, rows, raw, masks)


def brute_force(cosines, unhealthy):
    values = np.unique(cosines)
    thresholds = [values[0] - 1, *((values[:-1] + values[1:]) / 2), values[-1] + 1]
    return max(float(((cosines <= t) == unhealthy).mean()) for t in thresholds)


def test_threshold_is_the_most_accurate_one():
    rng = np.random.default_rng(0)
    for n in (2, 3, 10, 200):
        for _ in range(20):
            unhealthy = rng.random(n) < 0.4
            cosines = np.round(0.99 + 0.005 * rng.random(n) - 0.002 * unhealthy, 4)
            Cos_w, accuracy = best_threshold(cosines, unhealthy)
            assert accuracy == pytest.approx(brute_force(cosines, unhealthy))
            assert ((cosines <= Cos_w) == unhealthy).mean() == pytest.approx(accuracy)


@pytest.mark.parametrize("anomaly_map", ["aggregate", "last"])
def test_one_sweep_serves_every_w_and_every_shorter_L(anomaly_map):
    slices, w = sliceset(5, channels=2), (0.0, 1.5, 8.0)
    process, rule = Process(Schedule(), 301, 60), MapRule(anomaly_map)
    curves = sweeps(slices, toy_network, process, (181, 200, 301), w, (0, 1), slots=2,
                    anomaly_map=anomaly_map)  # fmt: skip
    assert curves[301].M.shape == (5, 3, 6, 2)
    for k, strength in enumerate(w):
        for L in (181, 200, 301):  # the first two end at the same timestep
            stream = (Slice(i, slices.x0(i)) for i in range(5))
            part = curves[L]
            row = NumpySlots(
                Process(Schedule(), L, 60),
                toy_network,
                lambda strength=strength: AnomalyAccumulator(strength, (0, 1), rule),
            )
            for item, accumulator in run(row, stream):
                np.testing.assert_array_equal(part.M[item.key, k], accumulator.M)
                np.testing.assert_array_equal(part.MSE_h[item.key, k], accumulator.MSE_h)
                np.testing.assert_array_equal(part.MSE_0[item.key], accumulator.MSE_0)
                smoothed = ndimage.median_filter(accumulator.H.mean(axis=0), 5, mode="mirror")
                assert part.map_peak[item.key, k] == pytest.approx(np.log(smoothed.max()))


def separable(n=40, seed=0):
    """Curves of two steps; larger w separates worse, and only the second step separates well."""
    rng = np.random.default_rng(seed)
    unhealthy = np.arange(n) % 2 == 0
    w = (1.0, 2.0, 5.0)
    wrong = {1.0: 0, 2.0: 0, 5.0: 10}
    MSE_0 = np.ones((n, 2, 1))
    MSE_h = np.ones((n, 3, 2, 1))
    for k, strength in enumerate(w):
        seen = unhealthy.copy()
        seen[: wrong[strength]] ^= True
        MSE_h[:, k, 1, 0] = np.where(seen, 3.0, 1.1) + 0.01 * rng.random(n)
    M = rng.random((n, 3, 2, 1))
    return Curves(w, np.array([1, 61]), M, MSE_h, MSE_0, np.zeros(M.shape[:2])), unhealthy


def test_largest_w_near_the_best_and_smallest_L_near_the_best():
    curves, unhealthy = separable()
    choice = choose(by_L(curves), labelled(unhealthy), "cosine")
    best = choice.best
    assert (best.L, best.w, best.cosine_accuracy) == (61, 2.0, 1.0)
    assert len(choice.candidates) == 6
    np.testing.assert_allclose(best.M_max, curves.M[:, 1].max())
    at_one = [c.cosine_accuracy for c in choice.candidates if c.L == 1]
    assert max(at_one) < 0.99


def by_L(curves):
    """At L = 61, and at L = 1, where the first step is all."""
    first = {name: getattr(curves, name)[..., :1, :] for name in ("M", "MSE_h", "MSE_0")}
    return {61: curves, 1: dataclasses.replace(curves, timesteps=curves.timesteps[:1], **first)}


def standing_out(curves, unhealthy, wrong=()):
    """The same with alignments that separate at the first step already, where they are half of
    -sqrt(M), but for a few slices, and best for the largest w."""
    M = np.where(unhealthy, 0.5, 1.0)[:, None, None, None] * np.ones((1, 3, 2, 1))
    M[:8, :2] = 0.75
    for i in wrong:
        M[i] = 1.0 if unhealthy[i] else 0.5
    return dataclasses.replace(curves, M=M)


def test_the_decision_in_use_decides():
    curves, unhealthy = separable()
    curves = standing_out(curves, unhealthy)
    choice = choose(by_L(curves), labelled(unhealthy), "calibrated")
    best = choice.best
    assert (best.L, best.w, best.calibrated_accuracy) == (1, 5.0, 1.0)
    at = -best.logistic.intercept / best.logistic.alignment
    assert -np.sqrt(1.0) / 2 < at < -np.sqrt(0.5) / 2


def test_the_better_decision_is_chosen_by_default():
    """By accuracy on patients left out, at each decision's own best L and w."""
    curves, unhealthy = separable()
    labels = labelled(unhealthy)
    blurred = curves.MSE_h.copy()
    blurred[3:9, :, 1] = 2.0
    # A threshold is between most slices; the regression's goes by those few that stand out.
    faint = np.where(unhealthy, 1.2, 1.1)[:, None, None, None] * np.ones_like(curves.MSE_h)
    faint[:, :, 0], faint[::8, :, 1] = 1.0, 1e6
    for MSE_h, wrong, better in (
        (blurred, (), "calibrated"),
        (faint, range(3, 30, 3), "cosine"),
    ):
        changed = standing_out(dataclasses.replace(curves, MSE_h=MSE_h), unhealthy, wrong)
        if better == "cosine":  # the alignment is to tell nothing
            changed = dataclasses.replace(changed, M=1e6 * (1 + curves.M))
        seen = by_L(changed)
        choice = choose(seen, labels)
        assert choice.decision == better
        worse = {"cosine": "calibrated", "calibrated": "cosine"}[better]
        assert choice.cross_validated[better] > choice.cross_validated[worse] + 0.02
        assert choice.best == choose(seen, labels, better).best


def test_the_cosine_is_tested_on_patients_left_out_as_well():
    rng = np.random.default_rng(1)
    curves, unhealthy = separable()
    noisy = curves.MSE_h + rng.random(curves.MSE_h.shape)
    curves, labels = dataclasses.replace(curves, MSE_h=noisy), labelled(unhealthy)
    choice = choose({61: curves}, labels, "cosine")
    cosines = cosine(noisy[:, curves.w.index(choice.best.w)], curves.MSE_0)
    right = []
    for name in np.unique(labels.patients):
        out = labels.patients == name
        Cos_w, _ = best_threshold(cosines[~out], unhealthy[~out])
        right += ((cosines[out] <= Cos_w) == unhealthy[out]).tolist()
    assert choice.cross_validated["cosine"] == pytest.approx(np.mean(right))
    assert choice.best.cosine_accuracy > np.mean(right)


def test_choosing_among_many_on_noise_is_not_mistaken_for_skill():
    """L and w are chosen without the patients that are tested: a coin's accuracy is left."""
    rng, n, w = np.random.default_rng(0), 60, tuple(range(1, 9))
    shape, labels = (n, len(w), 2), labelled(np.arange(n) % 2 == 0)
    found, seen = {"cosine": [], "calibrated": []}, []
    for _ in range(6):
        curves = {
            L: Curves(w, np.array([1, L]), rng.random((*shape, 1)), 1 + rng.random((*shape, 1)),
                      1 + rng.random((n, 2, 1)), rng.random(shape[:2]))
            for L in (61, 121)
        }  # fmt: skip
        choice = choose(curves, labels)
        seen.append([max(one.accuracy(name) for one in choice.candidates) for name in found])
        for name, accuracy in choice.cross_validated.items():
            found[name].append(accuracy)
    assert np.mean(seen) > 0.58
    assert abs(np.mean(found["cosine"]) - 0.5) < 0.06
    assert abs(np.mean(found["calibrated"]) - 0.5) < 0.06


def test_the_report_says_when_the_largest_w_was_chosen():
    curves, unhealthy = separable()
    bare = SimpleNamespace(peaks=None, early_stop=None)
    for given, largest in ((curves, False), (standing_out(curves, unhealthy), True)):
        choice = choose(by_L(given), labelled(unhealthy), "calibrated" if largest else "cosine")
        assert (choice.best.w == 5.0) == largest
        lines = list(report(choice, bare, labelled(unhealthy)))
        assert any("w = 5 is the largest that was tried" in line for line in lines) == largest


def test_one_patient_is_too_few_for_the_calibrated_decision():
    curves, unhealthy = separable()
    alone = labelled(unhealthy, patients=1)
    assert choose(by_L(curves), alone).decision == "cosine"
    with pytest.raises(CohortError, match="two patients"):
        choose(by_L(curves), alone, "calibrated")


@pytest.mark.parametrize("anomaly_map", ["aggregate", "last"])
@pytest.mark.parametrize("spacing", ["even", "log-snr"])
def test_every_L_has_the_curves_of_its_own_process(spacing, anomaly_map):
    slices, calls = sliceset(3), []
    process = Process(Schedule(), 301, 60, True, "ddim", spacing)
    got = sweeps(slices, toy_network, process, (301, 121), (2.0,), (0,), anomaly_map=anomaly_map,
                 progress=lambda done, total: calls.append((done, total)))  # fmt: skip
    for L in (121, 301):
        want = sweep(slices, toy_network, dataclasses.replace(process, L=L), (2.0,), (0,),
                     anomaly_map=anomaly_map)  # fmt: skip
        for name in ("timesteps", "M", "MSE_h", "MSE_0", "map_peak"):
            np.testing.assert_array_equal(getattr(got[L], name), getattr(want, name))
    total = 3 if spacing == "even" else 6
    assert calls == [(i + 1, total) for i in range(total)]


def test_masks_play_no_part():
    """Asking for one raises."""
    blind = dataclasses.replace(sliceset(6), _masks=None)
    curves = sweep(blind, toy_network, Process(Schedule(), 3), (1.0,), (0,))
    assert choose({3: curves}, labelled(blind.unhealthy)).best.L == 3


def test_a_network_that_ignores_the_label_cannot_be_calibrated():
    def deaf(x_t, t):
        return x_t, x_t

    slices = sliceset(6)
    curves = sweep(slices, deaf, Process(Schedule(), 3), (1.0,), (0,))
    with pytest.raises(CohortError, match="the same with and without the label"):
        choose({3: curves}, labelled(slices.unhealthy))


@pytest.mark.parametrize("value", [True, False])
def test_one_class_is_refused(value):
    curves, unhealthy = separable()
    with pytest.raises(CohortError, match="needs both classes"):
        choose({61: curves}, labelled(np.full_like(unhealthy, value)))


def test_evaluation_against_masks_counted_by_hand():
    """Decisions and masks as the segmenter gives them, the figures recomputed slice by slice."""
    slices = sliceset(12)
    drawn = [slices.mask(i) for i in range(12)]
    toy = bundle()
    segmenter = Segmenter(toy, NumpyBackend(toy_network))
    results = sorted(
        segmenter.segment_slices(Slice(i, slices.x0(i)) for i in range(12)), key=lambda r: r.key
    )
    middle = np.median([result.cosine for result in results])
    aligned = np.array([result.alignment for result in results])
    height = float(np.median(aligned)) + 0.01
    logistic = LogisticDecision(-30 * height, 30.0, 0.0)
    changed = recalibrated(toy, Cos_w=float(middle), logistic=logistic)
    segmenter = Segmenter(changed, NumpyBackend(toy_network))
    got = evaluate(segmenter, slices)

    def overlap(mask, drawn):
        total = mask.sum() + drawn.sum()
        return 1.0 if total == 0 else 2 * (mask * drawn).sum() / total

    decision = np.array([result.cosine <= middle for result in results])
    every = [overlap(r.mask, m) for r, m in zip(results, drawn, strict=True)]
    gated = [overlap(r.mask * v, m) for r, v, m in zip(results, decision, drawn, strict=True)]
    sick = slices.unhealthy
    assert got.unhealthy.dice == pytest.approx(np.mean(np.array(every)[sick]))
    assert got.unhealthy_gated.dice == pytest.approx(np.mean(np.array(gated)[sick]))
    assert got.mixed.dice == pytest.approx(np.mean(gated))
    assert got.mixed.empty_dice == pytest.approx(0.5)
    assert got.unhealthy.empty_dice == got.unhealthy.empty_iou == 0.0
    assert got.accuracy == pytest.approx((decision == sick).mean())
    patients = [
        overlap(
            np.stack([results[i].mask * decision[i] for i in range(3 * p, 3 * p + 3)]),
            np.stack(drawn[3 * p : 3 * p + 3]),
        )
        for p in range(4)
    ]
    assert got.patients.dice == pytest.approx(np.mean(patients))
    pixels = [(median(r.H), m) for r, m, s in zip(results, drawn, sick, strict=True) if s]
    inside = [slices.x0(i)[0] > -0.95 for i in range(12) if sick[i]]
    want = average_precision_score(
        np.concatenate([m[f] for (_, m), f in zip(pixels, inside, strict=True)]),
        np.concatenate([h[f] for (h, _), f in zip(pixels, inside, strict=True)]),
    )
    assert got.unhealthy.auprc == pytest.approx(want)
    assert [row.gated_dice for row in got.slices] == pytest.approx(gated)
    assert "| unhealthy slices, every one segmented |" in got.table()
    chances = 1 / (1 + np.exp(30 * (height - aligned)))
    assert ((chances > 0.4) & (chances < 0.5)).any()
    assert got.decisions["calibrated"].accuracy == pytest.approx(((chances >= 0.5) == sick).mean())
    assert got.decisions["calibrated"].sensitivity == pytest.approx((chances >= 0.5)[sick].mean())
    assert got.decisions["calibrated"].specificity == pytest.approx((chances < 0.5)[~sick].mean())
    assert got.decisions["cosine"].auroc == pytest.approx(
        roc_auc_score(sick, [-result.cosine for result in results])
    )
    assert got.decisions["cosine"].sensitivity == pytest.approx(decision[sick].mean())
    assert got.decisions["cosine"].specificity == pytest.approx(1 - decision[~sick].mean())
    low, high = got.unhealthy.dice_interval
    assert low <= got.unhealthy.dice <= high
    low, high = got.unhealthy.auprc_interval
    assert low - 0.01 <= got.unhealthy.auprc <= high + 0.01
    assert "| cosine, in use |" in got.table()


def test_evaluation_names_implausible_patients():
    slices, toy = sliceset(12), bundle()
    known = Plausibility((0.0,) * 6, (1e-3,) * 6, 1.0)
    segmenter = Segmenter(recalibrated(toy, plausibility=known), NumpyBackend(toy_network))
    assert evaluate(segmenter, slices).implausible == ("P0", "P1", "P2", "P3")
    assert evaluate(Segmenter(toy, NumpyBackend(toy_network)), slices).implausible == ()


def test_evaluation_needs_masks():
    with pytest.raises(CohortError, match="no reference masks"):
        evaluate(Segmenter(bundle(), NumpyBackend(toy_network)), sliceset(drawn=False))
