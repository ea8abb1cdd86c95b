"""Verification of a weight file: its content, which public files it equals, and which fusion its masks ask for."""

from openworldsam.verify.command import run, verify

__all__ = ["run", "verify"]
