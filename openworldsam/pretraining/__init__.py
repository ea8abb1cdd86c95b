"""How the two tiny encoders of the Shapes world were made: as the real ones were, and then frozen."""
