"""Reproduces the paper's ablations (Tables 4 and 5) and Fig. 3, by default on the Shapes world."""
