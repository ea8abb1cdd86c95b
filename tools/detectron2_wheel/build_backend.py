"""PEP 517 build backend: `pip install ./tools/detectron2_wheel` installs Detectron2 as pure Python.

Detectron2 is not on the package index under its own name. The wheel SOURCE is upstream commit a59f0563, but
it is tagged for CPython 3.10 because of a compiled module, `detectron2._C`, that this project never uses.
So: download that wheel, check its hash, leave the compiled module out, and write the rest as a wheel
`detectron2` for any Python 3.
"""

import base64
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

SOURCE = "sal-detectron2==0.7.2"
SOURCE_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
DOWNLOAD = (
    "download --no-deps --require-hashes --only-binary=:all: "
    "--python-version 3.10 --implementation cp --abi none --platform any"
)

VERSION = "0.6+a59f0563"  # upstream calls itself 0.6; the local label tells this build from an upstream one
DIST_INFO = f"detectron2-{VERSION}.dist-info"

# Upstream's own list with three changes: no black (only used to print lazy configs), no upper bound on iopath
# (sam2 needs 0.1.10), and torch and torchvision, which upstream needs but does not declare.
REQUIRES = """torch torchvision numpy Pillow>=7.1 matplotlib pycocotools>=2.0.2 termcolor>=1.1 yacs>=0.1.8 tabulate
cloudpickle tqdm>4.29.0 tensorboard fvcore>=0.1.5,<0.1.6 iopath>=0.1.7 omegaconf>=2.1,<2.4 hydra-core>=1.1 packaging"""
METADATA = f"""\
Metadata-Version: 2.1
Name: detectron2
Version: {VERSION}
Summary: The Python part of Detectron2 at upstream commit a59f0563, without its compiled module
Home-page: https://github.com/facebookresearch/detectron2
Author: FAIR
License: Apache-2.0
License-File: LICENSE
Requires-Python: >=3.10
""" + "".join(f"Requires-Dist: {package}\n" for package in REQUIRES.split())
WHEEL = """\
Wheel-Version: 1.0
Generator: openworldsam-detectron2-wheel
Root-Is-Purelib: true
Tag: py3-none-any
"""


def download(folder: str) -> Path:
    """Fetch SOURCE into `folder` with the pip, and the pip configuration, of whoever is installing."""
    # pip accepts a hash only in a requirements file.
    requirements = Path(folder, "source.txt")
    requirements.write_text(f"{SOURCE} --hash=sha256:{SOURCE_SHA256}\n")
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, *DOWNLOAD.split(), "-d", folder, "-r", str(requirements)], check=True)
    return next(Path(folder).glob("*.whl"))


def build_wheel(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    """The one hook pip needs: write the wheel into `wheel_directory` and return its file name."""
    files: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(download(folder)) as source:
        for name in source.namelist():
            # Besides the package the source holds a top-level `tools`, which has no place in site-packages.
            if name.startswith("detectron2/") and not name.endswith(("/", ".so")):
                files[name] = source.read(name)
            elif name.endswith(".dist-info/LICENSE"):
                files[f"{DIST_INFO}/LICENSE"] = source.read(name)

    # The only line of the package that is changed: the version back to upstream's.
    init = "detectron2/__init__.py"
    files[init] = files[init].replace(b'__version__ = "0.7.2"', b'__version__ = "0.6"')
    files[f"{DIST_INFO}/METADATA"] = METADATA.encode()
    files[f"{DIST_INFO}/WHEEL"] = WHEEL.encode()

    record = ""
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(data)}\n"
    record_name = f"{DIST_INFO}/RECORD"
    files[record_name] = f"{record}{record_name},,\n".encode()

    wheel_name = f"detectron2-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(Path(wheel_directory, wheel_name), "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
    return wheel_name
