"""The datasets in Detectron2's catalogs. Importing this package registers their names; no file is touched by that.

Paths are relative to $DETECTRON2_DATASETS, or to `datasets`, looked up when a dataset is loaded.
datasets/README.md says how to get each of them.
"""

from openworldsam.data.datasets import coco, refcocog

coco.register()
refcocog.register()
