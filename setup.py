"""Build and install RestorMixer. Everything about the project that pip needs is in this file."""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "restormixer_arch/__init__.py").read_text(), re.M).group(1)

# models/, data/ and options/ lie at the top for the reader; installed they are parts of restormixer_arch, so
# that a single name reaches site-packages and nobody else's `models` or `data` is shadowed.
PACKAGE_DIR = {
    "restormixer_arch": "restormixer_arch",
    "restormixer_arch.models": "models",
    "restormixer_arch.data": "data",
    "restormixer_arch.options": "options",
}
SUBPACKAGES = ["selective_scan", "basicsr_adapter", "cli"]

setup(
    name="restormixer",
    version=VERSION,
    description="RestorMixer, an image-restoration network, as a plug-in of BasicSR",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[*PACKAGE_DIR, *(f"restormixer_arch.{name}" for name in SUBPACKAGES)],
    package_dir=PACKAGE_DIR,
    package_data={
        "restormixer_arch.data": ["samples/*.lmdb/*", "samples/*.md", "samples/pictures/*/*", "DATASETS.md"],
        "restormixer_arch.options": ["*.yml"],
    },
    install_requires=[
        # BasicSR's released sdist cannot be built from Python 3.13 on (its setup.py reads exec()'s locals).
        # new-basicsr 1.0.0 is a wheel of BasicSR's later, unreleased commits under the same import name.
        "basicsr==1.4.2; python_version < '3.13'",
        "new-basicsr==1.0.0; python_version >= '3.13'",
        "setuptools",  # basicsr imports distutils, which Python >= 3.12 has only through setuptools
        "torch>=2.4",
        "torchvision",
        "einops",
        "lmdb",
        "numpy",
        "opencv-python",
        "pydantic>=2",
        "pyyaml",
        "tensorboard",
        "tqdm",
    ],
    extras_require={
        "cuda": ["mamba-ssm", "causal-conv1d"],
        "compare": ["spandrel", "spandrel-extra-arches"],
        "test": ["pytest", "pytest-timeout", "hypothesis", "safetensors", "scikit-image", "ruff"],
    },
    entry_points={
        "console_scripts": ["basicsr = restormixer_arch.cli:main"],
        "basicsr.plugins": ["restormixer = restormixer_arch.basicsr_adapter.register"],
    },
)
