"""Makes the files that a dataset's publisher does not offer: label images, panoptic PNGs, jsons.

`command.PREPARATIONS` lists the makers. A file under its final name is complete and is not made twice, so every
preparation may be interrupted and repeated.
"""
