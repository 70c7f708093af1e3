"""Locate the weights of a comparison's networks, and build the networks."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from restormixer_arch.basicsr_adapter import spandrel_networks
from restormixer_arch.basicsr_adapter.loading import describe_mismatch, read_entry
from restormixer_arch.basicsr_adapter.padded import Padded, required_multiple
from restormixer_arch.config.yaml_file import read_options
from restormixer_arch.errors import UserError
from restormixer_arch.hub import LATEST_WEIGHTS
from restormixer_arch.inference.weights import explain_unbuildable, read_weights
from restormixer_arch.output import user_path
from restormixer_arch.restormixer_arch import RestorMixer
from restormixer_arch.weight_options import is_restormixer, options_from_weights, stamp_problem

ITERATION = re.compile(r"net_g_(\d+)\.pth")


@dataclass(frozen=True)
class Entry:
    """A competitor to measure.

    Attributes:
        name: name in the option file.
        network: section ``network_g``, or None to recognize the network from the weights.
        weights: weight file, or None for the network's initial values.
        param_key: entry of the weight file, or None for the EMA weights if it has them.
        multiple_of: multiple that images are padded to, or None for the multiple that the network needs.
    """

    name: str
    network: dict[str, Any] | None = None
    weights: str | None = None
    param_key: str | None = None
    multiple_of: int | None = None

    def as_job(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class BuiltNetwork:
    """A network ready to restore images (B, C, H, W), with the name and arguments of its architecture."""

    network: nn.Module
    arch: str
    arguments: dict[str, Any] = field(default_factory=dict)


def entry_of_run(name: str, run: str, checkpoint: str | None, multiple_of: int | None) -> Entry:
    """Find the network and weights of a previous training run.

    Args:
        name: name of the competitor.
        run: folder of the training run, with its option file and ``models``.
        checkpoint: ``best`` for the best weights by the first metric on the first validation set of its option file;
            ``newest`` or None for those saved last.
        multiple_of: see :class:`Entry`.

    Raises:
        UserError: if the folder has no option file, no network or no such weights.
    """
    folder = user_path(run)
    files = sorted(folder.glob("*.yml"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise UserError(f"{run}: has no option file (*.yml), expected the folder of a training")
    options = read_options(files[-1], str(files[-1]))
    network = options.get("network_g")
    if not isinstance(network, dict) or "type" not in network:
        raise UserError(f"{files[-1]}: has no section network_g with a type")
    models = folder / "models"
    weights = models / _best(options, files[-1]) if checkpoint == "best" else _newest(models)
    if weights is None or not weights.is_file():
        there = ", ".join(path.name for path in sorted(models.glob("net_g_*.pth"))) or "none"
        wanted = weights.name if weights else LATEST_WEIGHTS
        raise UserError(f"{models}: has no {wanted}; weights there: {there}")
    return Entry(name, network, str(weights), None, multiple_of)


def _newest(models: Path) -> Path | None:
    """Return the weights saved last: ``net_g_latest.pth``, or those of the highest iteration if they are newer."""
    numbered = [(int(match[1]), path) for path in models.glob("*.pth") if (match := ITERATION.fullmatch(path.name))]
    last, latest = max(numbered, default=(0, None))[1], models / LATEST_WEIGHTS
    if latest.is_file() and (last is None or latest.stat().st_mtime >= last.stat().st_mtime):
        return latest
    return last


def _best(options: dict[str, Any], file: Path) -> str:
    sets = [data for phase, data in (options.get("datasets") or {}).items() if str(phase).startswith("val")]
    metrics = list((options.get("val") or {}).get("metrics") or ())
    if not sets or not metrics:
        raise UserError(f"{file}: has no validation set, so there are no best weights; expected checkpoint: newest")
    return f"net_g_best_{sets[0]['name']}_{metrics[0]}.pth"


def build(entry: Entry) -> BuiltNetwork:
    """Build a competitor in evaluation mode, with its weights.

    Raises:
        UserError: if the weights cannot be read, do not fit the network, or do not identify their network.
    """
    built = _from_section(entry) if entry.network else _from_weights(entry.weights)
    multiple = entry.multiple_of or required_multiple(built.network)
    if multiple > 1:
        built.network = Padded(built.network, multiple)
    built.network.eval()
    return built


def _from_section(entry: Entry) -> BuiltNetwork:
    network = spandrel_networks.build(entry.network, f"competitors.{entry.name}")
    if entry.weights:
        asked = f"competitors.{entry.name}.param_key" if entry.param_key else None
        state = read_entry(entry.weights, entry.param_key, asked, network.state_dict().keys())[0]
        if isinstance(network, RestorMixer) and (problem := stamp_problem(network, state)):
            raise UserError(f"{entry.weights}: its weights {problem}, as competitors.{entry.name}.network_g says")
        try:
            network.load_state_dict(state)
        except RuntimeError as error:  # torch raises it for missing, unexpected and wrongly shaped tensors
            reasons = describe_mismatch(network, state, error)
            raise UserError(f"{entry.weights}: does not fit competitors.{entry.name}: {reasons}") from error
    arguments = {key: value for key, value in entry.network.items() if key != "type"}
    return BuiltNetwork(network, entry.network["type"], arguments)


def _from_weights(path: str) -> BuiltNetwork:
    state = read_weights(path)
    if is_restormixer(state):
        options = options_from_weights(state)
        with explain_unbuildable(path, "; name it by network_g"):  # such as weights of an ablation
            return BuiltNetwork(RestorMixer.from_weights(state, options), "RestorMixer", options)
    loader = spandrel_networks.model_loader()
    if loader is None:
        raise UserError(
            f"{path}: is not a RestorMixer; recognizing other networks needs spandrel: {spandrel_networks.INSTALL}"
        )
    from spandrel import ImageModelDescriptor, UnsupportedModelError

    try:
        descriptor = loader.load_from_file(path)
    except (UnsupportedModelError, ValueError) as error:
        raise UserError(f"{path}: spandrel does not recognize its network; specify it with network_g") from error
    if not isinstance(descriptor, ImageModelDescriptor):
        raise UserError(f"{path}: {descriptor.architecture.name} cannot restore images without a mask")
    return BuiltNetwork(SpandrelModule(descriptor.model, descriptor), f"{descriptor.architecture.name} (spandrel)")


class SpandrelModule(nn.Module):
    """A network called through spandrel, which pads the image, adds further inputs and clamps the output.

    Shape:
        (1, C, H, W) in [0, 1] -> (1, C, scale * H, scale * W) in [0, 1]
    """

    pads_itself = True

    def __init__(self, network: nn.Module, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)
