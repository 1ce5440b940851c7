"""DICOM in and out: a series of MR images as one volume, and its mask as a DICOM SEG.

Messages and notes name files, UIDs and series descriptions; nothing else of what is read.
Imports util/, errors.
"""

from .detect import is_dicom
from .seg import check_seg, write_seg
from .series import Series, read_series

__all__ = ["Series", "check_seg", "is_dicom", "read_series", "write_seg"]
