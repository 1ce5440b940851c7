"""Headers that are drawn field by field, in files of every form."""

import gzip
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from fuzz.targets import TARGETS
from fuzz.worker import attempt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

REALS = st.one_of(
    st.floats(width=32, allow_nan=True, allow_infinity=True), st.sampled_from([0.0, 1.0, -1.0, 2.5])
)
CODES = sorted({code for code in nib.nifti1.data_type_codes.code if isinstance(code, int)})
SIZES = st.one_of(st.integers(1, 30), st.sampled_from([0, -1, 1, 2, 32767, -32768]))
FIELDS = {
    "datatype": st.one_of(st.sampled_from(CODES), st.integers(-1, 3000)),
    "bitpix": st.integers(-1, 256),
    "vox_offset": st.one_of(st.just(352), st.integers(-10, 10**6)),
    "scl_slope": REALS,
    "scl_inter": REALS,
    "xyzt_units": st.integers(0, 255),
    "qform_code": st.integers(-1, 6),
    "sform_code": st.integers(-1, 6),
    "quatern_b": REALS,
    "quatern_c": REALS,
    "qoffset_x": REALS,
    "srow_x": st.lists(REALS, min_size=4, max_size=4),
    "srow_z": st.lists(REALS, min_size=4, max_size=4),
    "pixdim": st.lists(REALS, min_size=8, max_size=8),
    "magic": st.sampled_from([b"n+1", b"ni1", b"", b"n+2", b"xyz"]),
    "sizeof_hdr": st.sampled_from([348, 540, 0, -1]),
    "intent_code": st.sampled_from([0, 1002, 3001, 3006, 32767]),
}
KINDS = {
    "NIfTI-1": nib.Nifti1Header, "NIfTI-2": nib.Nifti2Header, "Analyze": nib.AnalyzeHeader,
    "pair": nib.nifti1.Nifti1PairHeader,
}  # fmt: skip


@st.composite
def files(draw):
    """The files of an image, by name: a good one in which some fields hold anything."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    order = draw(st.sampled_from("<>"))
    header = KINDS[kind](endianness=order)
    shape = (14, 16, 6) if draw(st.booleans()) else tuple(draw(st.lists(SIZES, max_size=7)))
    header.set_data_dtype(draw(st.sampled_from([np.uint8, np.int16, np.float32, np.float64])))
    record = header.structarr
    record["dim"][0] = len(shape)
    record["dim"][1 : 1 + len(shape)] = shape
    record["pixdim"][1:4] = 8
    single = kind in ("NIfTI-1", "NIfTI-2")
    length = header.sizeof_hdr + 4
    if single:
        record["vox_offset"] = length
    for name in draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=4, unique=True)):
        if name in record.dtype.names:
            with np.errstate(all="ignore"):
                record[name] = np.asarray(draw(FIELDS[name])).astype(record.dtype[name].base)
    extended = draw(st.sampled_from([b"\0\0\0\0", b"\1\0\0\0" + draw(st.binary(max_size=40))]))
    seed = draw(st.integers(0, 3))
    voxels = np.random.default_rng(seed).bytes(draw(st.sampled_from([0, 100, 2688, 5376, 10752])))
    if single:
        raw = record.tobytes() + extended + voxels
        return {"v.nii.gz": gzip.compress(raw, 1)} if draw(st.booleans()) else {"v.nii": raw}
    return {"v.hdr": record.tobytes() + extended, "v.img": voxels}


@settings(
    max_examples=150, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
@given(files())
def test_any_header_is_used_or_refused(drawn):
    with tempfile.TemporaryDirectory() as folder:
        outcome = attempt(TARGETS["nifti"], drawn, Path(folder, "case"))
    assert outcome in ("used", "refused")
