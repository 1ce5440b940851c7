import nibabel as nib
import numpy as np
import pytest
from support import bundle, fading_network, head, recalibrated, toy_network
from transcription import alpha_bar

import anofpdm
from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.backends.cpu.onnxruntime import OnnxDenoiser
from anofpdm.runtime.bundle.calibration import EarlyStop
from anofpdm.runtime.errors import AnofpdmError, BundleError, VolumeError
from anofpdm.runtime.method.decision import LogisticDecision
from anofpdm.runtime.method.process import Slice
from anofpdm.runtime.method.threshold import threshold
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.volume.grid import to_grid
from anofpdm.runtime.volume.plausibility import Plausibility

AFFINE = np.diag([7.5, 7.5, 5.0, 1.0])


class KnowsTheHealthyHead:
    """The exact network when the healthy head is known and the null label says the slice itself."""

    def __init__(self, healthy, sick):
        self.pairs = [(sick[i], healthy[i]) for i in range(len(sick))]

    def __call__(self, x_t, t):
        a = np.array(alpha_bar())[t - 1][:, None, None, None]
        healthy, sick = np.empty_like(x_t), np.empty_like(x_t)
        for i, x in enumerate(x_t):
            nearest = min(self.pairs, key=lambda pair: np.abs(np.sqrt(a[i]) * pair[0] - x).sum())
            sick[i], healthy[i] = nearest
        root, rest = np.sqrt(a), np.sqrt(1 - a)
        both = [(x_t - root * x0) / rest for x0 in (healthy, sick)]
        return both[0].astype(np.float32), both[1].astype(np.float32)


@pytest.mark.parametrize("M_max", [10.0, 1e-6])
def test_a_planted_lesion_is_found(M_max):
    """Where healthy and null differ by the lesion alone, the mask lies on the lesion.

    Far below M_max, Algorithm 1 marks 2 % of a slice: all of it is lesion. Far above, 10 %: all of
    the lesion is marked.
    """
    toy = bundle(process=("ddim", 61, 60, "even"))
    toy = recalibrated(toy, M_max=(M_max,))
    grid, voxel_mm = toy.manifest.grid, (7.5, 7.5, 5.0)
    sick_volume, healthy_volume = head(), head(lesion=False)
    sick, _ = to_grid(sick_volume[None], voxel_mm, grid)
    healthy, _ = to_grid(healthy_volume[None], voxel_mm, grid)
    network = KnowsTheHealthyHead(healthy, sick)
    segmenter = Segmenter(toy, NumpyBackend(network))
    mask = segmenter.segment(sick_volume, affine=AFFINE).mask.astype(bool)
    lesion = sick_volume - healthy_volume > 25
    level = lesion.sum(axis=(0, 1)).argmax()
    hit = (mask & lesion)[..., level].sum()
    assert hit == (mask if M_max == 10.0 else lesion)[..., level].sum() > 0


def test_a_result_holds_its_curves_and_decisions():
    segmenter = Segmenter(bundle(), NumpyBackend(toy_network))
    segmentation = segmenter.segment(head(), affine=AFFINE)
    assert [result.key for result in segmentation.slices] == sorted(
        r.key for r in segmentation.slices
    )
    assert segmentation.volume_ml == pytest.approx(segmentation.mask.sum() * 7.5 * 7.5 * 5 / 1000)
    calibration = segmenter.plan.calibration
    for result in segmentation.slices:
        assert result.M.shape == (6, 1)
        assert result.t_e[0] == segmenter.plan.process.timesteps[result.M[:, 0].argmax()]
        assert result.unhealthy == (result.cosine <= calibration.Cos_w)
        want = threshold(result.H[None], result.M.max(0), np.array(calibration.M_max), 0.9, 0.98)
        assert result.Q == want.Q


def test_healthy_slices_are_empty_unless_chosen():
    segmenter = Segmenter(recalibrated(bundle(), Cos_w=-1.0), NumpyBackend(toy_network))
    assert not segmenter.segment(head(), affine=AFFINE).mask.any()
    assert segmenter.segment(head(), affine=AFFINE, every_slice=True).mask.any()


def test_the_calibrated_decision_can_decide():
    toy = bundle()
    slices = Segmenter(toy, NumpyBackend(toy_network)).segment(head(), affine=AFFINE).slices
    score = np.array([2 * r.alignment - 30 * np.arccos(r.cosine) for r in slices])
    middle = float(np.median(score))
    decision = LogisticDecision(-middle, 2.0, -30.0)
    other = recalibrated(toy, decision="calibrated", logistic=decision, Cos_w=-1.0)
    segmentation = Segmenter(other, NumpyBackend(toy_network)).segment(head(), affine=AFFINE)
    assert [r.unhealthy for r in segmentation.slices] == (score >= middle).tolist()
    assert 0 < segmentation.unhealthy_slices < len(segmentation.slices)
    want = 1 / (1 + np.exp(middle - score))
    assert [r.probability for r in segmentation.slices] == pytest.approx(want.tolist())


def test_a_volume_unlike_the_calibrations_has_a_note():
    toy = bundle()
    slices = Segmenter(toy, NumpyBackend(toy_network)).segment(head(), affine=AFFINE).slices
    curves = np.log([r.MSE_0[:, 0] for r in slices])
    known = Plausibility(tuple(curves.mean(axis=0)), tuple(curves.std(axis=0)), 2.0)
    segmenter = Segmenter(recalibrated(toy, plausibility=known), NumpyBackend(toy_network))
    assert segmenter.segment(head(), affine=AFFINE).notes == ()
    noise = np.random.default_rng(0).random((24, 28, 10)).astype(np.float32)
    assert "unlike" in segmenter.segment(noise, affine=AFFINE).notes[0]
    (after,) = segmenter.segment_many([nib.Nifti1Image(noise, AFFINE)])
    assert "unlike" in after.notes[0]


def test_masks_depend_on_the_seed_and_not_on_slots_or_earlier_volumes():
    one = Segmenter(bundle(), NumpyBackend(toy_network, 1))
    many = Segmenter(bundle(), NumpyBackend(toy_network, 5))
    many.segment(head(seed=9), affine=AFFINE)
    a = one.segment(head(), affine=AFFINE)
    b = many.segment(head(), affine=AFFINE)
    assert np.array_equal(a.mask, b.mask)
    other = Segmenter(bundle(), NumpyBackend(toy_network), seed=1).segment(head(), affine=AFFINE)
    assert not np.array_equal(a.slices[0].H, other.slices[0].H)


def test_many_volumes_through_the_same_slots_give_what_each_gives_alone():
    """Also with early stop, where slices of a later volume may be done first."""
    sizes = []

    def counting(x_t, t):
        sizes.append(len(x_t))
        return fading_network(x_t, t)

    stop = EarlyStop(0.9, 2, 2.0, LogisticDecision(1.0, 0.0, 0.0), (0.01,), 1.0, 0.9, 0.9, 5.0, 6)
    toy = recalibrated(bundle(process=("ddim", 401, 10, "even")), early_stop=stop)
    images = [
        nib.Nifti1Image(head((24, 28, depth), seed=depth), AFFINE) for depth in (10, 6, 8, 10)
    ]
    many = list(Segmenter(toy, NumpyBackend(counting, 7)).segment_many(iter(images)))
    assert sizes == sorted(sizes, reverse=True)  # full until no slices are left
    assert len(many) == 4
    steps = set()
    for image, got in zip(images, many, strict=True):
        alone = Segmenter(toy, NumpyBackend(fading_network, 1)).segment(image)
        assert np.array_equal(got.mask, alone.mask)
        assert [r.key for r in got.slices] == [r.key for r in alone.slices]
        for one, other in zip(got.slices, alone.slices, strict=True):
            assert np.array_equal(one.M, other.M)
            assert np.array_equal(one.H, other.H)
            steps.add(len(one.M))
    assert len(steps) > 1


def test_volumes_come_out_in_order_whichever_is_done_first():
    class Backwards(Segmenter):
        def segment_slices(self, slices):
            yield from sorted(super().segment_slices(slices), key=lambda result: -result.volume)

    depths = (6, 8, 10)
    images = [nib.Nifti1Image(head((24, 28, depth)), AFFINE) for depth in depths]
    segmentations = list(Backwards(bundle(), NumpyBackend(toy_network)).segment_many(images))
    assert [segmentation.mask.shape[2] for segmentation in segmentations] == list(depths)


def test_volumes_are_fetched_when_their_turn_comes():
    fetched = []

    def images():
        for i in range(3):
            fetched.append(i)
            yield nib.Nifti1Image(head(seed=i), AFFINE)

    stream = Segmenter(bundle(), NumpyBackend(toy_network, 2)).segment_many(images())
    next(stream)
    assert fetched in ([0], [0, 1])
    assert len(list(stream)) == 2


def test_a_bad_volume_is_named_and_those_before_it_come_first():
    good, bad = (nib.Nifti1Image(head() * scale, AFFINE) for scale in (1, np.nan))
    stream = Segmenter(bundle(), NumpyBackend(toy_network, 20)).segment_many([good, bad, good])
    assert next(stream).mask.shape == (24, 28, 10)
    with pytest.raises(VolumeError, match="volume 2: the image holds NaN"):
        next(stream)


def test_a_path_is_not_an_image():
    with pytest.raises(VolumeError, match=r"pass nibabel\.load"):
        Segmenter(bundle(), NumpyBackend(toy_network)).segment("v.nii.gz")


def test_names_must_be_as_many_as_images():
    with pytest.raises(VolumeError, match="2 names for 1 images"):
        Segmenter(bundle(), NumpyBackend(toy_network)).segment(
            head(), affine=AFFINE, names=["a", "b"]
        )


def test_no_volumes():
    assert list(Segmenter(bundle(), NumpyBackend(toy_network)).segment_many([])) == []


def test_modalities_on_other_grids_are_resampled_with_a_note():
    toy = bundle(channels=2)
    first = nib.Nifti1Image(head(), AFFINE)
    coarse = nib.Nifti1Image(head((12, 14, 10)), np.diag([15.0, 15.0, 5.0, 1.0]))
    segmentation = Segmenter(toy, NumpyBackend(toy_network)).segment(
        [first, coarse], names=["a.nii", "b.nii"]
    )
    assert segmentation.notes == ("b.nii was resampled onto the grid of a.nii",)
    assert segmentation.mask.shape == (24, 28, 10)
    both = np.stack([head(), head()], axis=-1)
    four = Segmenter(toy, NumpyBackend(toy_network)).segment(both, affine=AFFINE)
    same = Segmenter(toy, NumpyBackend(toy_network)).segment([first, first])
    assert same.notes == four.notes == ()
    assert np.array_equal(four.mask, same.mask)


def test_progress_counts_slices():
    calls = []
    segmentation = Segmenter(bundle(), NumpyBackend(toy_network)).segment(
        head(), affine=AFFINE, progress=lambda done, total: calls.append((done, total))
    )
    total = len(segmentation.slices)
    assert calls == [(i, total) for i in range(1, total + 1)]


def test_uncalibrated_bundles_are_refused():
    with pytest.raises(BundleError, match="not calibrated"):
        Segmenter(bundle(calibration=False), NumpyBackend(toy_network))


def test_public_names():
    assert anofpdm.Segmenter is Segmenter
    assert issubclass(BundleError, anofpdm.AnofpdmError)
    assert issubclass(BundleError, ValueError)
    assert anofpdm.AnofpdmError is AnofpdmError
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        anofpdm.nothing  # noqa: B018


def test_a_network_that_is_none_is_refused(tmp_path):
    (tmp_path / "unet.onnx").write_bytes(b"not a network")
    with pytest.raises(BundleError, match=r"unet\.onnx cannot be loaded"):
        OnnxDenoiser(tmp_path / "unet.onnx")


def test_slices_are_accepted_as_they_come():
    segmenter = Segmenter(bundle(), NumpyBackend(toy_network))
    x0 = np.random.default_rng(0).uniform(-1, 1, (5, 1, 32, 32)).astype(np.float32)
    results = list(segmenter.segment_slices(Slice(i, x) for i, x in enumerate(x0)))
    assert sorted(result.key for result in results) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "affine", [np.zeros((4, 4)), np.diag([1, 1, 0, 1]), np.full((4, 4), np.nan)]
)
def test_an_affine_that_leads_nowhere_is_refused(affine):
    with pytest.raises(VolumeError, match="affine is singular"):
        Segmenter(bundle(), NumpyBackend(toy_network)).segment(head(), affine=affine)


def test_planes_come_back_to_their_levels():
    segmentation = Segmenter(bundle(), NumpyBackend(toy_network)).segment(head(), affine=AFFINE)
    planes = np.stack([np.full((32, 32), result.key + 1.0) for result in segmentation.slices])
    back = segmentation.geometry.to_source(planes)
    levels = {result.key for result in segmentation.slices}
    for level in range(back.shape[2]):
        assert back[12, 14, level] == (level + 1 if level in levels else 0)
