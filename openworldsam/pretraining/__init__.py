"""Trains the tiny SAM2 and BEiT-3 of the Shapes world, as the real ones were trained, and SAM2's video memory."""
