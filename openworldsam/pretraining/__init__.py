"""Trains the tiny SAM2, BEiT-3 and CLIP of the Shapes world, as the real ones were trained, and SAM2's video memory."""
