"""Facts of each dataset, and its registration in Detectron2's catalogs.

Importing this package registers the datasets with fixed files; `register_datasets` those that a config describes.
Neither reads an image. Paths are relative to $DETECTRON2_DATASETS, or to `datasets`, when a dataset is loaded.
datasets/README.md says how to get each of them.
"""

from detectron2.config import CfgNode

from openworldsam.data.datasets import benchmarks, coco, custom, referring, shapes

coco.register()
referring.register()
benchmarks.register()


def register_datasets(cfg: CfgNode) -> None:
    """Register the datasets that a config describes: the splits of Shapes, and custom ones. May be called again.

    Raises:
        FileNotFoundError: a file of DATASETS.OWN, or a json that one names, is missing.
        ValueError: names the key that is wrong.
    """
    shapes.register(cfg)
    if not all(isinstance(path, str) for path in cfg.DATASETS.OWN):
        raise ValueError(f"DATASETS.OWN must be a list of file names, got {cfg.DATASETS.OWN!r}")
    for path in cfg.DATASETS.OWN:
        custom.register(path)
