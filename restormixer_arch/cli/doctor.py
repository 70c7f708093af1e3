"""``basicsr doctor``: report what is installed and found, what is wrong, and how to fix it."""

from __future__ import annotations

import importlib
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from restormixer_arch import __version__
from restormixer_arch.cli.parsing import Parser
from restormixer_arch.errors import exception_text
from restormixer_arch.output import print_result
from restormixer_arch.processes import cores

# (distribution, module, purpose) of packages that training needs. BasicSR has a separate section.
REQUIRED = (
    ("torch", "torch", "everything"),
    ("torchvision", "torchvision", "BasicSR"),
    ("setuptools", "setuptools", "BasicSR"),
    ("einops", "einops", "the network"),
    ("numpy", "numpy", "images"),
    ("opencv-python", "cv2", "reading images"),
    ("pillow", "PIL", "reading images"),
    ("tifffile", "tifffile", "TIFF images"),
    ("lmdb", "lmdb", "image databases"),
    ("safetensors", "safetensors", "weights"),
    ("pytorch-optimizer", "pytorch_optimizer", "Muon and other optimizers"),
    ("matplotlib", "matplotlib", "curves"),
    ("tensorboard", "tensorboard", "logger.use_tb_logger: true"),
    ("pydantic", "pydantic", "checking option files"),
    ("pyyaml", "yaml", "option files"),
    ("scipy", "scipy", "statistics"),
    ("tqdm", "tqdm", "progress bars"),
)
MAMBA = "MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation mamba-ssm"  # newer releases omit the scan
# (distribution, module, purpose, extra that installs it, or "" if none does)
OPTIONAL = (
    ("av", "av", "videos", "video"),
    ("pillow-heif", "pillow_heif", "HEIC pictures", "heif"),
    ("spandrel", "spandrel", "third-party networks in basicsr compare and bench", "compare"),
    ("gradio", "gradio", "basicsr demo", "demo"),
    ("onnx", "onnx", "basicsr export of *.onnx", "export"),
    ("onnxscript", "onnxscript", "basicsr export of *.onnx", "export"),
    ("onnxruntime", "onnxruntime", "basicsr export and basicsr restore of *.onnx", "export"),
    ("huggingface-hub", "huggingface_hub", "weights from the Hugging Face Hub", "hub"),
    ("torchmetrics", "torchmetrics", "LPIPS and DISTS", "metrics"),
    ("schedulefree", "schedulefree", "schedule-free optimizers", "optimizers"),
    ("triton", "triton", "the scan on a GPU; it comes with torch's CUDA builds, and needs gcc or clang", ""),
    ("mamba-ssm", "mamba_ssm", f"the scan on a GPU where Triton does not work; with a CUDA compiler: {MAMBA}", ""),
    ("causal-conv1d", "causal_conv1d", "mamba-ssm", ""),
)


@dataclass(frozen=True)
class Finding:
    """A line of the report. ``state``: ``ok``, ``--`` for something missing but not needed, ``!!`` for a problem."""

    what: str
    text: str
    state: str = "ok"

    def __str__(self) -> str:
        return f"  {self.state}  {self.what:<18} {self.text}"


def run(arguments: list[str]) -> int:
    """Print the report. Returns 0 if training can run, else 1."""
    Parser("doctor", "Show what is installed, what is missing and how to fix it.").parse_args(arguments)
    problems = 0
    print_result(f"restormixer {__version__}")
    for title, section in SECTIONS.items():
        print_result(f"\n{title}")
        for finding in section():
            problems += finding.state == "!!"
            print_result(str(finding))
    summary = f"{problems} problem{'s' if problems > 1 else ''} (!!) to fix first" if problems else "ready to train"
    print_result(f"\n{summary}")
    return 1 if problems else 0


def versions() -> Iterator[Finding]:
    yield Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.prefix}")
    for name, module, purpose in REQUIRED:
        yield _package(name, module, f"for {purpose}; pip install {name}", "!!")
    for name, module, purpose, extra in OPTIONAL:
        install = f"; pip install 'restormixer[{extra}]'" if extra else ""
        yield _package(name, module, f"for {purpose}{install}", "--")


def _package(name: str, module: str, use: str, state: str) -> Finding:
    """Return the finding on a distribution; ``state`` is its state if it is not installed."""
    try:
        text = version(name)
    except PackageNotFoundError:
        if find_spec(module) is not None:  # provided by another distribution, such as opencv-python-headless
            return Finding(name, "installed under another name")
        return Finding(name, f"not installed ({use})", state)
    if state == "!!" and (reason := _import_error(module)):
        return Finding(name, f"{text} cannot be imported: {reason}", state)
    return Finding(name, text)


def devices() -> Iterator[Finding]:
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    yield Finding("cpu", f"{cores()} cores, torch uses {torch.get_num_threads()} threads, {capability} instructions")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = torch.cuda.is_available()
    if found:
        for index in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(index).total_memory / 2**30
            yield Finding(f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, {memory:.1f} GiB")
    elif torch.version.cuda is None:
        yield Finding("cuda", "this torch was built without CUDA", "--")
    else:
        reason = f": {str(caught[0].message).partition(chr(10))[0]}" if caught else ""
        yield Finding("cuda", f"no device found (torch is built for CUDA {torch.version.cuda}){reason}", "--")
    if found and torch.cuda.device_count() > 1:
        yield Finding("several GPUs", "need one process each: torchrun --nproc_per_node=N, or num_gpu: 1 for one", "--")
    if torch.backends.mps.is_available():
        yield Finding("mps", "found; use 'device: mps' in an option file, or basicsr restore --device mps")


def upstream() -> Iterator[Finding]:
    from restormixer_arch.basicsr_adapter import compat

    installed = compat.installed_distributions()
    names = ", ".join(f"{name} {number}" for name, number in installed) or "no known distribution"
    if len(installed) > 1:
        yield Finding("distribution", f"{names}: they overwrite each other; uninstall all and install one", "!!")
    compat.apply()
    import basicsr

    folder = os.path.dirname(basicsr.__file__)
    if os.path.dirname(folder) == os.getcwd():
        fix = "another project's copy in the working directory hides the installed one; run from another folder"
        yield Finding("basicsr", f"{folder}: {fix}", "!!")
    else:
        yield Finding("basicsr", f"{names}, {folder}")
    for patch, state in compat.report():
        if state == "applied":
            yield Finding(patch.name, f"fixed: {patch.breaks}")
        else:
            yield Finding(patch.name, f"not needed ({patch.versions})", "--")


def plug_ins() -> Iterator[Finding]:
    from restormixer_arch.basicsr_adapter import register

    found = register.load_plugins()
    for plugin in found:
        text = f"{plugin.target} of {plugin.package}"
        yield Finding(plugin.name, f"{text}: {plugin.error}" if plugin.error else text, "!!" if plugin.error else "ok")
    if not any(plugin.name == "restormixer" for plugin in found):
        yield Finding("restormixer", "not found as a plug-in; install the project again: pip install .", "!!")
    from basicsr.utils import registry

    counts = (
        f"{len(registry.ARCH_REGISTRY.keys())} architectures, {len(registry.MODEL_REGISTRY.keys())} models, "
        f"{len(registry.DATASET_REGISTRY.keys())} datasets, {len(registry.LOSS_REGISTRY.keys())} losses, "
        f"{len(registry.METRIC_REGISTRY.keys())} metrics"
    )
    yield Finding("registered", counts)


def scan() -> Iterator[Finding]:
    from restormixer_arch import selective_scan

    backends = selective_scan.available_backends()
    for name, reason in backends.items():
        yield Finding(name, "usable" if reason is None else f"not usable: {reason}", "ok" if reason is None else "--")
    if all(backends.values()):
        yield Finding("scan", "no backend is usable", "!!")
    for line in selective_scan.backend_report().splitlines():
        yield Finding("taken on", line)


def _import_error(module: str) -> str | None:
    """Import a module and return why that fails, or None."""
    try:
        importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - a broken binary package may fail in any way, and is reported
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return None


def _with_errors(section: Callable[[], Iterator[Finding]]) -> Callable[[], Iterator[Finding]]:
    """Wrap a section so that an exception becomes a finding and the report continues."""

    def findings() -> Iterator[Finding]:
        try:
            yield from section()
        except Exception as error:  # noqa: BLE001 - reported as a problem
            yield Finding(section.__name__, exception_text(error), "!!")

    return findings


SECTIONS = {
    "versions": _with_errors(versions),
    "devices": _with_errors(devices),
    "basicsr and its fixes": _with_errors(upstream),
    "plug-ins": _with_errors(plug_ins),
    "selective scan": _with_errors(scan),
}
