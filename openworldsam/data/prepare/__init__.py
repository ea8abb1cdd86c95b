"""Make what a benchmark does not ship: labels, panoptic PNGs and jsons of the classes in the paper."""
