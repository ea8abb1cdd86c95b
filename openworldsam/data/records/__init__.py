"""Ground truth in the formats it comes in."""
