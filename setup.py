"""Installs the one package `openworldsam` and its console commands."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
# Read, not imported: importing the package needs the dependencies that are about to be installed.
VERSION = re.search(r'^__version__ = "(.+)"', (HERE / "openworldsam/__init__.py").read_text(), re.MULTILINE)
assert VERSION, "openworldsam/__init__.py has no __version__"


class BuildWithData(build_py):
    """Put the configs and the Shapes weights into the package, where `openworldsam.config_files.shipped` finds them."""

    def run(self) -> None:
        super().run()
        for folder in () if self.editable_mode else ("configs", "weights/shapes"):
            shutil.copytree(HERE / folder, Path(self.build_lib, "openworldsam", folder), dirs_exist_ok=True)


setup(
    name="openworldsam",
    version=VERSION[1],
    description="Open-vocabulary segmentation: a photograph and a text in, masks out",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=["segmentation", "open vocabulary", "SAM2", "BEiT-3", "Detectron2"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Intended Audience :: Developers",
        "Operating System :: POSIX :: Linux",
        "Operating System :: MacOS",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["openworldsam*"]),
    # makes an editable install a plain path; the usual import hook would lose to a clone folder named openworldsam
    package_dir={"": "."},
    package_data={"openworldsam": ["py.typed"], "openworldsam.data.datasets": ["classes/*.json"]},
    cmdclass={"build_py": BuildWithData},
    python_requires=">=3.10,<3.13",
    # The bounds the code needs; requirements.txt pins one set that is known to work.
    # Detectron2 is needed but not listed: it is not on the package index under that name, and upstream's bound
    # on iopath (<0.1.10) contradicts sam2's (>=0.1.10). If it were listed, pip would refuse to install next to
    # an upstream Detectron2, although the two work together.
    install_requires=[
        "torch>=2.5.1",
        "torchvision",
        "numpy>=1.26",
        "pillow",
        "scipy",
        "opencv-python-headless",
        "av",
        "matplotlib",
        "tabulate",
        "tqdm",
        "sam2",
        "torchscale",
        "timm",
        "sentencepiece",
        "safetensors",
        "filelock",
        "fvcore",
        "pycocotools",
    ],
    extras_require={
        # panopticapi-lite imports as `panopticapi`; the original is not on the package index
        "test": ["pytest", "pytest-xdist", "scikit-image", "h5py", "panopticapi-lite"],
        "lint": ["ruff", "mypy"],
        "supervision": ["supervision"],
        "fiftyone": ["fiftyone"],
        "label-studio": ["label-studio-ml", "rq"],  # in an environment of its own: an old Flask
        "app": ["gradio>=6.31,<7"],
        "encoders": ["transformers>=5.24,<6", "open_clip_torch>=2.32"],
        "cityscapes": ["cityscapesscripts"],  # for the test that Cityscapes' AP equals it
    },
    entry_points={
        "console_scripts": [
            "openworldsam = openworldsam.cli:main",
            # earlier names
            "openworldsam-demo = openworldsam.cli:segment",
            "openworldsam-annotate = openworldsam.cli:annotate",
            "openworldsam-video = openworldsam.cli:video",
            "openworldsam-app = openworldsam.cli:app",
        ]
    },
)
