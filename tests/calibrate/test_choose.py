import dataclasses

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from support import bundle, recalibrated, toy_network

from anofpdm.calibrate.choose import choose
from anofpdm.calibrate.evaluation import evaluate
from anofpdm.calibrate.sweep import Curves, sweep
from anofpdm.calibrate.threshold import best_threshold
from anofpdm.runtime.backend import HostBackend
from anofpdm.runtime.errors import CohortError
from anofpdm.runtime.forward import Process, Slice, run
from anofpdm.runtime.host_row import HostRow
from anofpdm.runtime.postprocess import smooth
from anofpdm.runtime.schedule import Schedule
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.select import AnomalyDigest
from anofpdm.runtime.sliceset import SliceRecord, SliceSet


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


def test_one_sweep_serves_every_w_and_every_shorter_L():
    slices, w = sliceset(5, channels=2), (0.0, 1.5, 8.0)
    curves = sweep(slices, toy_network, Process(Schedule(), 301, 60), w, (0, 1), slots=2)
    assert curves.M.shape == (5, 3, 6, 2)
    for k, strength in enumerate(w):
        for L in (181, 301):
            stream = (Slice(i, slices.x0(i)) for i in range(5))
            part = curves.up_to(L)
            row = HostRow(
                Process(Schedule(), L, 60),
                toy_network,
                lambda strength=strength: AnomalyDigest(strength, (0, 1)),
            )
            for item, digest in run(row, stream):
                np.testing.assert_array_equal(part.M[item.key, k], digest.M)
                np.testing.assert_array_equal(part.MSE_h[item.key, k], digest.MSE_h)
                np.testing.assert_array_equal(part.MSE_0[item.key], digest.MSE_0)
                want = np.quantile(digest.H.mean(axis=0), 0.99)
                assert part.peak[item.key, k, -1] == pytest.approx(want)


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
    return Curves(w, np.array([1, 61]), M, MSE_h, MSE_0, rng.random((n, 3, 2))), unhealthy


def test_largest_w_near_the_best_and_smallest_L_near_the_best():
    curves, unhealthy = separable()
    choice = choose(curves, unhealthy, (1, 61))
    best = choice.best
    assert (best.L, best.w, best.cosine_accuracy) == (61, 2.0, 1.0)
    assert len(choice.candidates) == 6
    np.testing.assert_allclose(best.M_max, curves.M[:, 1].max())
    at_one = [c.cosine_accuracy for c in choice.candidates if c.L == 1]
    assert max(at_one) < 0.99


def test_the_verdict_in_use_decides():
    """The map separates at the first step already, and best for the largest w."""
    curves, unhealthy = separable()
    peaks = np.where(unhealthy, 0.2, 0.1)[:, None, None] * np.ones((1, 3, 2))
    peaks[:8, :2] = 0.15
    choice = choose(dataclasses.replace(curves, peak=peaks), unhealthy, (1, 61), "map")
    assert (choice.best.L, choice.best.w, choice.best.map_accuracy) == (1, 5.0, 1.0)
    assert choice.best.H_99 == pytest.approx(0.15)


def test_masks_play_no_part():
    """Asking for one raises."""
    blind = dataclasses.replace(sliceset(6), _masks=None)
    curves = sweep(blind, toy_network, Process(Schedule(), 3), (1.0,), (0,))
    assert choose(curves, blind.unhealthy, (3,)).best.L == 3


def test_a_network_that_ignores_the_label_cannot_be_calibrated():
    def deaf(x_t, t):
        return x_t, x_t

    slices = sliceset(6)
    curves = sweep(slices, deaf, Process(Schedule(), 3), (1.0,), (0,))
    with pytest.raises(CohortError, match="the same with and without the label"):
        choose(curves, slices.unhealthy, (3,))


@pytest.mark.parametrize("value", [True, False])
def test_one_class_is_refused(value):
    curves, unhealthy = separable()
    with pytest.raises(CohortError, match="needs both classes"):
        choose(curves, np.full_like(unhealthy, value), (61,))


def test_evaluation_against_masks_counted_by_hand():
    """Verdicts and masks as the segmenter gives them, the figures recomputed slice by slice."""
    slices = sliceset(12)
    drawn = [slices.mask(i) for i in range(12)]
    toy = bundle()
    segmenter = Segmenter(toy, HostBackend(toy_network))
    results = sorted(
        segmenter.analyse(Slice(i, slices.x0(i)) for i in range(12)), key=lambda r: r.key
    )
    middle = np.median([result.cosine for result in results])
    segmenter = Segmenter(recalibrated(toy, Cos_w=float(middle)), HostBackend(toy_network))
    got = evaluate(segmenter, slices)

    def overlap(mask, drawn):
        total = mask.sum() + drawn.sum()
        return 1.0 if total == 0 else 2 * (mask * drawn).sum() / total

    verdict = np.array([result.cosine <= middle for result in results])
    every = [overlap(r.mask, m) for r, m in zip(results, drawn, strict=True)]
    gated = [overlap(r.mask * v, m) for r, v, m in zip(results, verdict, drawn, strict=True)]
    sick = slices.unhealthy
    assert got.unhealthy.dice == pytest.approx(np.mean(np.array(every)[sick]))
    assert got.unhealthy_gated.dice == pytest.approx(np.mean(np.array(gated)[sick]))
    assert got.mixed.dice == pytest.approx(np.mean(gated))
    assert got.mixed.empty_dice == pytest.approx(0.5)
    assert got.unhealthy.empty_dice == got.unhealthy.empty_iou == 0.0
    assert got.accuracy == pytest.approx((verdict == sick).mean())
    patients = [
        overlap(
            np.stack([results[i].mask * verdict[i] for i in range(3 * p, 3 * p + 3)]),
            np.stack(drawn[3 * p : 3 * p + 3]),
        )
        for p in range(4)
    ]
    assert got.patients.dice == pytest.approx(np.mean(patients))
    pixels = [(smooth(r.H), m) for r, m, s in zip(results, drawn, sick, strict=True) if s]
    inside = [slices.x0(i)[0] > -0.95 for i in range(12) if sick[i]]
    want = average_precision_score(
        np.concatenate([m[f] for (_, m), f in zip(pixels, inside, strict=True)]),
        np.concatenate([h[f] for (h, _), f in zip(pixels, inside, strict=True)]),
    )
    assert got.unhealthy.auprc == pytest.approx(want)
    assert [row.gated_dice for row in got.slices] == pytest.approx(gated)
    assert "| unhealthy slices, every one segmented |" in got.table()


def test_evaluation_needs_masks():
    with pytest.raises(CohortError, match="no reference masks"):
        evaluate(Segmenter(bundle(), HostBackend(toy_network)), sliceset(drawn=False))
