"""A page about evaluations: figures per class, what is mistaken for what, and pictures side by side."""
