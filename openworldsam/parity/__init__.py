"""Comparison with recorded numbers of the released model (golden files)."""

from openworldsam.parity.checks import Check, format_checks, read_golden
from openworldsam.parity.model import check_model
from openworldsam.parity.postprocess import check_postprocess

__all__ = ["Check", "check_model", "check_postprocess", "format_checks", "read_golden"]
