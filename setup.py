"""Build and install RestorMixer. Everything about the project that pip needs is in this file."""

import os
import re
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "restormixer_arch/__init__.py").read_text(), re.M).group(1)

# models/, data/ and options/ are at the top level for readability. When installed, they are part of restormixer_arch,
# so only one name is added to site-packages, and no other package's `models` or `data` is shadowed.
PACKAGE_DIR = {
    "restormixer_arch": "restormixer_arch",
    "restormixer_arch.models": "models",
    "restormixer_arch.data": "data",
    "restormixer_arch.options": "options",
}

# The library for CPUs (scans, GELU, window attention) is plain C without Python or torch headers, so one library works
# with every version of both, and the build needs no torch. Without a compiler, the package still installs and runs
# in plain torch, unless this environment variable makes the missing library an error.
REQUIRE_KERNEL = os.environ.get("RESTORMIXER_REQUIRE_NATIVE") == "1"
KERNEL = "restormixer_arch/native/kernel"
KERNEL_FLAGS = ["-O3", "-g0", "-std=c11", "-fvisibility=hidden", "-pthread"]
if sys.platform == "win32":
    KERNEL_FLAGS = ["/O2", "/std:c11"]
kernel = Extension(
    "restormixer_arch.native._kernel",
    sources=[path.as_posix() for path in sorted(Path(KERNEL).glob("kernel*.c"))],
    depends=[path.as_posix() for path in sorted(Path(KERNEL).glob("kernel*.h"))],
    extra_compile_args=KERNEL_FLAGS,
    extra_link_args=[] if sys.platform == "win32" else ["-pthread"],
    py_limited_api=True,
    optional=not REQUIRE_KERNEL,
)


class BuildLibrary(build_ext):
    """Build the kernel as a ctypes library, without the PyInit function that would have to be exported on Windows."""

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return ext.export_symbols


def packages() -> list[str]:
    """Return the mapped packages and all their subpackages."""
    found = []
    for name, folder in PACKAGE_DIR.items():
        found += [name, *(f"{name}.{inner}" for inner in find_packages(str(ROOT / folder)))]
    return found


# URL of the public repository, such as https://host/owner/name; empty until one exists. If it is set, the package index
# shows it, and the README's relative links and images work there.
HOME = ""


def long_description() -> str:
    """Return the README, with absolute instead of relative links if the repository has a URL."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.sub(r"\]\((?!https?:|#)", f"]({HOME}/raw/main/", text) if HOME else text


setup(
    name="restormixer",
    version=VERSION,
    description="RestorMixer, an image-restoration network, as a plug-in of BasicSR",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    project_urls={"Source": HOME, "Changelog": f"{HOME}/blob/main/CHANGELOG.md"} if HOME else {},
    keywords=[
        *("image restoration", "deraining", "dehazing", "desnowing", "deblurring", "super-resolution"),
        *("mamba", "selective scan", "basicsr", "pytorch"),
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Intended Audience :: Developers",
        "Operating System :: POSIX :: Linux",
        "Operating System :: MacOS",
        "Operating System :: Microsoft :: Windows",
        "Programming Language :: C",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
        "Topic :: Multimedia :: Graphics",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Processing",
    ],
    python_requires=">=3.10",
    packages=packages(),
    package_dir=PACKAGE_DIR,
    ext_modules=[kernel],
    cmdclass={"build_ext": BuildLibrary},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},  # the kernel does not depend on Python
    package_data={
        "restormixer_arch": ["weights/*", "HUB.md"],
        "restormixer_arch.inference": ["RESTORE.md", "choose_task.json"],
        "restormixer_arch.compare.report": ["templates/*"],
        "restormixer_arch.data": [
            "samples/*.lmdb/*",
            "samples/*.md",
            "samples/*.json",
            "samples/pictures/*/*",
            "*.md",
            "preparation/photos.tsv",
            "preparation/photos_pairs.json",
        ],
        "restormixer_arch.options": ["*.yml", "*.md", "*.ipynb", "schema.json"],
    },
    install_requires=[
        # BasicSR's released sdist cannot be built with Python 3.13 or later (its setup.py reads exec()'s locals).
        # new-basicsr 1.0.0 is a wheel of BasicSR's later, unreleased commits under the same import name.
        "basicsr==1.4.2; python_version < '3.13'",
        "new-basicsr==1.0.0; python_version >= '3.13'",
        # basicsr imports distutils, which Python >= 3.12 has only through setuptools. It requires tb-nightly, which is
        # tensorboard under another name; its viewer needs pkg_resources, which setuptools 81 no longer contains.
        "setuptools<81",
        "torch>=2.4",
        "torchvision",
        "einops",
        "lmdb",
        "matplotlib",
        "numpy",
        "opencv-python>=4.13",  # first version that writes PNG with color profile and EXIF
        "pillow>=11.3",  # first version that reads AVIF
        "pydantic>=2.10",  # first version that keeps infinity in results without warnings
        "pytorch-optimizer>=4.1",  # first version whose Muon is tested here
        "pyyaml",
        "safetensors",
        "scipy",
        "tensorboard; python_version >= '3.13'",  # with older Python, tb-nightly would overwrite its files
        "tifffile",
        "tqdm",
    ],
    extras_require={
        "cuda": ["mamba-ssm", "causal-conv1d"],
        "compare": ["spandrel", "spandrel-extra-arches", "mambapy", "thop", "jinja2", "plotly"],
        "demo": ["gradio>=6"],
        "heif": ["pillow-heif"],
        "video": ["av>=18; python_version >= '3.11'"],
        "metrics": ["torchmetrics>=1.8"],
        "optimizers": ["schedulefree>=1.4"],
        "hub": ["huggingface_hub>=0.30"],
        "export": ["onnx", "onnxscript", "onnxruntime"],
        "test": [
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "hypothesis",
            "av>=18; python_version >= '3.11'",
            "huggingface_hub>=0.30",
            "jinja2",
            "jsonschema",
            "kornia",
            "onnx",
            "onnxruntime",
            "onnxscript",
            "pillow-heif",
            "plotly",
            "schedulefree>=1.4",
            "scikit-image",
            "selenium",
            "spandrel",
            "torchmetrics>=1.8",
            "ruff",
        ],
    },
    entry_points={
        "console_scripts": ["basicsr = restormixer_arch.cli:main"],
        "basicsr.plugins": ["restormixer = restormixer_arch.basicsr_adapter.register"],
    },
)
