"""Makers of the files that a dataset's publisher does not offer: label images, panoptic PNGs, jsons.

`command.PREPARATIONS` lists them; each is a function that prints what it made. A file under its final name is whole and
is not made twice, so that everything may be interrupted and repeated.
"""
