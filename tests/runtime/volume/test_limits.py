"""What is too large, or claims to be, is refused in one line, fast and without taking memory."""

import gzip
import struct
import time
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from support import bundle, head, save, toy_network

from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.errors import VolumeError
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.volume import limits, reader, slabs
from anofpdm.runtime.volume.limits import GIB, Limits, check_memory, estimate_bytes, free_bytes
from anofpdm.runtime.volume.nifti import load_image
from anofpdm.runtime.volume.reader import read_volume
from anofpdm.runtime.volume.slicing import to_slices
from anofpdm.runtime.volume.voxels import read_values


def claiming(shape, kind=np.float32, version=1, offset=None):
    """A header, 352 or 544 bytes, for voxels that follow."""
    header = nib.Nifti1Header() if version == 1 else nib.Nifti2Header()
    header.set_data_shape(shape)
    header.set_data_dtype(kind)
    header.set_sform(np.diag([1.0, 1, 1, 1]), 1)
    header["magic"] = b"n+1" if version == 1 else header["magic"]
    header["vox_offset"] = offset or (352 if version == 1 else 544)
    return header.binaryblock + bytes(4)


def zipped(count, first=b"", path=None):
    """``first`` and ``count`` zeros; blocks that are compressed once and repeated."""
    block = gzip.compress(bytes(2**24), 9)
    path.write_bytes(gzip.compress(first, 9) + block * (count // 2**24))
    return path


def bomb(path):
    """16 GiB in 16 MB."""
    return zipped(2**34, claiming((2000, 2000, 1000)), path)


def claims_more_than_gzip_can_hold(path):
    path.write_bytes(gzip.compress(claiming((1500, 1500, 400)) + bytes(1000)))
    return path


def claims_ten_to_the_twelve(path):
    path.write_bytes(claiming((10**4,) * 3) + bytes(1000))
    return path


def claims_beyond_all_numbers(path):
    path.write_bytes(claiming((2**62, 2**62, 2**62), version=2) + bytes(1000))
    return path


def inflates_to_more_than_it_claims(path):
    return zipped(2**32, claiming((64, 64, 30), np.int16), path)


def begins_nowhere(path):
    path.write_bytes(gzip.compress(claiming((8, 8, 8), offset=2.0**60) + bytes(2000)))
    return path


def extension(path, size, offset):
    header = bytearray(claiming((8, 8, 8), np.int16, offset=offset))
    header[348] = 1
    return zipped(2**31, bytes(header) + struct.pack("<ii", size, 6), path)


CASES = {
    "bomb.nii.gz": (bomb, "at most 16.0 GiB|of memory"),
    "ratio.nii.gz": (claims_more_than_gzip_can_hold, "truncated or damaged: its header claims"),
    "claims.nii": (claims_ten_to_the_twelve, "at most 16.0 GiB"),
    "claims.nii.gz": (claims_ten_to_the_twelve, "readable|at most 16.0 GiB"),
    "huge.nii": (claims_beyond_all_numbers, "at most 16.0 GiB|readable"),
    "more.nii.gz": (inflates_to_more_than_it_claims, "goes on behind the voxels"),
    "offset.nii.gz": (begins_nowhere, "voxels begin at byte"),
    "long extension.nii.gz": (lambda p: extension(p, 2**31 - 16, 2.0**31), "extension"),
    "endless extension.nii.gz": (lambda p: extension(p, -8, 2.0**31), "readable"),
}


@pytest.fixture(scope="module")
def seconds_of_a_gibibyte():
    """CPU time of inflating that many zeros, however fast the machine: files hold 2 GiB or more."""
    block = gzip.compress(bytes(2**26), 9)
    started = time.process_time()
    for _ in range(4):
        gzip.decompress(block)
    return 4 * (time.process_time() - started)


@pytest.mark.parametrize("name", CASES)
def test_what_claims_or_inflates_to_too_much_is_refused_at_once(
    tmp_path, name, seconds_of_a_gibibyte
):
    make, message = CASES[name]
    path = make(tmp_path / name)
    assert path.stat().st_size < 20e6
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(VolumeError, match=message) as caught:
        read_volume([load_image(path)], [name], 1)
    seconds, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
    assert seconds < seconds_of_a_gibibyte
    assert peak < 64 * 2**20


def test_a_file_that_is_shorter_than_it_claims_is_refused_unread(tmp_path):
    path = tmp_path / "short.nii"
    path.write_bytes(claiming((512, 512, 400)) + bytes(5000))
    with pytest.raises(VolumeError, match=r"truncated or damaged.* holds at most 5352"):
        load_image(path)
    # Opened otherwise, it is refused when it is read.
    with pytest.raises(VolumeError, match="truncated or damaged"):
        Segmenter(bundle(), NumpyBackend(toy_network)).segment(nib.load(path))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_little_padding_is_tolerated_and_a_slice_more_is_not(tmp_path, suffix):
    volume = np.rint(head((64, 64, 30)))
    path = save(tmp_path / f"v{suffix}", volume, dtype=np.int16)
    whole = path.read_bytes()
    raw = gzip.decompress(whole) if suffix == ".nii.gz" else whole
    pack = gzip.compress if suffix == ".nii.gz" else bytes
    path.write_bytes(pack(raw + bytes(4096)))
    np.testing.assert_array_equal(read_values(load_image(path), "v"), volume)
    path.write_bytes(pack(raw + bytes(2**17)))
    with pytest.raises(VolumeError, match="goes on behind the voxels"):
        read_values(load_image(path), "v")


def test_what_follows_a_gzip_stream_is_tolerated_and_a_wrong_checksum_is_not(tmp_path):
    path = save(tmp_path / "v.nii.gz", head())
    whole = path.read_bytes()
    path.write_bytes(whole + b"garbage")
    np.testing.assert_array_equal(read_values(load_image(path), "v"), head())
    path.write_bytes(whole[:-8] + b"\0\0\0\0" + whole[-4:])
    with pytest.raises(VolumeError, match="damaged: CRC"):
        read_values(load_image(path), "v")


@pytest.mark.parametrize("kind", ["u1", "i2", ">i2", "u4", "i8", "f4", ">f8"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".hdr", ".nii.bz2"])
def test_slabs_hold_what_the_library_reads(tmp_path, monkeypatch, kind, suffix):
    monkeypatch.setattr(slabs, "_SLAB_VOXELS", 100)
    rng = np.random.default_rng(0)
    for shape in ((7, 5, 23), (9, 16, 4, 3), (6, 5, 4, 1), (5, 6)):
        array = rng.integers(0, 120, shape).astype(kind)
        image = (nib.Nifti1Pair if suffix == ".hdr" else nib.Nifti1Image)(
            array, np.eye(4), dtype=kind
        )
        image.header.set_slope_inter(*[(1, 0), (0.37, -5.3)][rng.integers(2)])
        path = tmp_path / f"v{len(shape)}{shape[-1]}{suffix}"
        nib.save(image, path)
        with np.errstate(all="ignore"):
            want = np.asarray(nib.load(path).dataobj, dtype=np.float32)
        for stored in (load_image(path), nib.Nifti1Image(want, np.eye(4))):
            got = read_values(stored, "v")
            assert got.dtype == np.float32
            np.testing.assert_array_equal(got, want)


def test_memory_is_estimated_and_refused_before_anything_is_read(tmp_path, monkeypatch):
    path = save(tmp_path / "v.nii.gz", head((64, 64, 30)))
    image = load_image(path)
    monkeypatch.setattr(reader, "fill", None)
    small = Limits(memory_bytes=GIB // 2)
    wanted = (
        r"v, shape \(64, 64, 30\), would take 0\.5 GiB of memory, 0\.5 GiB are allowed: resample"
    )
    with pytest.raises(VolumeError, match=wanted):
        to_slices([image], ["v"], ("a",), bundle().manifest.grid, small)
    monkeypatch.setattr(limits, "free_bytes", lambda: 2**20)
    with pytest.raises(VolumeError, match=r"0\.0 GiB are free"):
        Segmenter(bundle(), NumpyBackend(toy_network)).segment(image)
    monkeypatch.setattr(limits, "free_bytes", lambda: None)
    check_memory(estimate_bytes([(64, 64, 30)], 1), "v")


def test_a_file_limit_can_be_set(tmp_path):
    path = save(tmp_path / "v.nii.gz", head((64, 64, 30)))
    with pytest.raises(VolumeError, match="of voxels: at most"):
        load_image(path, Limits(file_bytes=1000))


def test_the_estimate_counts_copies():
    n = 512 * 512 * 400 * 4
    one = estimate_bytes([(512, 512, 400)], 1)
    assert 2 * n < one < 2 * GIB
    assert estimate_bytes([(512, 512, 400)], 4) == one + 3 * n
    other = estimate_bytes([(512, 512, 400), (256, 256, 100)], 2)
    assert other == estimate_bytes([(512, 512, 400)], 2) + 256 * 256 * 100 * 4


def test_free_memory_is_what_the_machine_and_its_container_leave(tmp_path, monkeypatch):
    assert 2**26 < free_bytes() < 2**50
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 300\ninactive_file 500\n")
    assert limits._container_bytes(tmp_path) == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert limits._container_bytes(tmp_path) is None
    monkeypatch.setattr(limits, "_machine_bytes", lambda: None)
    monkeypatch.setattr(limits, "_container_bytes", lambda: None)
    assert free_bytes() is None


def test_implausible_voxels_are_refused():
    image = nib.Nifti1Image(head(), np.diag([1e-9, 1e9, 5, 1]))
    with pytest.raises(VolumeError, match="are its voxels really 1e-09 x 1e\\+09 x 5 mm"):
        read_volume([image], ["v"], 1)


def test_a_segmented_volume_is_let_go(tmp_path):
    kept, _ = to_slices([nib.Nifti1Image(head(), np.diag([7.5, 7.5, 5, 1]))], None, ("a",),
                      bundle().manifest.grid)  # fmt: skip
    assert kept.volume.data.base is None
    assert kept.volume.data.nbytes == 0
