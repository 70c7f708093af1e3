"""Load weights into the networks of any BasicSR model; a file that does not fit is reported in one line."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from restormixer_arch.errors import UserError, did_you_mean, exception_text
from restormixer_arch.hub import locate
from restormixer_arch.inference.weights import entries_in, read_file, weights_in
from restormixer_arch.restormixer_arch import RestorMixer
from restormixer_arch.weight_options import canonical, stamp_problem

AVERAGED, TRAINED = "params_ema", "params"  # BasicSR uses the second if the first is missing


def load_network(
    self: Any, net: nn.Module, load_path: str | Path, strict: bool = True, param_key: str | None = TRAINED
) -> None:
    """Load weights from a checkpoint of any common tool into a network of a BasicSR model, on any device.

    Args:
        self: BasicSR model.
        net: network of that model.
        load_path: file, see :func:`restormixer_arch.inference.weights.read_weights`.
        strict: whether all tensors must exist and fit. If not, missing tensors and those of another shape are skipped.
        param_key: entry of the file. If ``path.param_key_*`` names it, it must exist, except that ``params`` replaces
            a missing ``params_ema``. Otherwise a missing entry is replaced by the best one in the file.

    Raises:
        UserError: if the file is missing or damaged, has no such entry, or does not fit the network.
    """
    from basicsr.utils import get_root_logger

    bare, section = self.get_bare_model(net), _section(self, net)
    key = f"param_key_{section.removeprefix('network_')}"
    asked = key in self.opt.get("path", {}) and self.opt["path"][key] == param_key
    names = bare.state_dict().keys()
    state, entry, entries = read_entry(load_path, param_key, f"path.{key}" if asked else None, names)
    shown = f"parameter key {entry}" if entry else "which has no parameter keys"
    if entry == TRAINED and AVERAGED in entries and not asked and not self.is_train:
        shown += f"; path.{key}: {AVERAGED} loads the averaged weights, which the file has too"
    get_root_logger().info(f"Loading {type(bare).__name__} from {load_path}, {shown}.")
    if isinstance(bare, RestorMixer) and (problem := stamp_problem(bare, state)):
        text = f"{load_path}: its weights {problem}, as {section} says"
        if strict:
            raise UserError(f"{text}; with path.strict_load_{section[-1]}: false they are loaded anyway")
        get_root_logger().warning(text)
    if isinstance(bare, RestorMixer):
        state = canonical(state)[0]
    given = state
    if not strict:
        shapes = {name: tensor.shape for name, tensor in bare.state_dict().items()}
        state = {name: tensor for name, tensor in given.items() if tensor.shape == shapes.get(name, tensor.shape)}
    try:
        keys = bare.load_state_dict(state, strict=strict)
    except RuntimeError as error:  # raised by torch for missing, unexpected or misshapen tensors
        reasons = describe_mismatch(bare, state, error)
        raise UserError(f"{load_path}: does not fit the network of {section}: {reasons}") from error
    parameters = {name for name, _ in bare.named_parameters()}
    if parameters and parameters <= set(keys.missing_keys):
        raise UserError(
            f"{load_path}: has no tensor of the network of {section}, so nothing would be loaded; "
            f"its first is {next(iter(keys.unexpected_keys), None)!r}, expected such as {keys.missing_keys[0]!r}"
        )
    if keys.missing_keys or keys.unexpected_keys:
        get_root_logger().warning(f"{load_path}: not all of it was loaded: {describe_mismatch(bare, given)}")


def describe_mismatch(net: nn.Module, given: Mapping[str, Tensor], error: RuntimeError | None = None) -> str:
    """Describe in one line why weights do not fit a network.

    Args:
        net: network.
        given: weights.
        error: torch's exception, whose text is returned if no tensor is missing, unexpected or misshapen.

    Returns:
        The number of missing, unexpected and misshapen tensors, with the first name of each kind.
    """
    own = net.state_dict()
    kinds = {
        "missing": [repr(name) for name in own if name not in given],
        "unexpected": [repr(name) for name in given if name not in own],
        "of another shape": [
            f"{name!r} with {'x'.join(map(str, given[name].shape))}, expected {'x'.join(map(str, tensor.shape))}"
            for name, tensor in own.items()
            if name in given and given[name].shape != tensor.shape
        ],
    }
    counts = [f"{kind}: {len(names)} tensors, first {names[0]}" for kind, names in kinds.items() if names]
    return "; ".join(counts) or (exception_text(error, with_type=False) if error else "")


def _section(model: Any, net: nn.Module) -> str:
    """Return the name of the option file's section that describes a network of a model, such as ``network_g``."""
    name = next((name for name, value in vars(model).items() if value is net), "net_g")
    return f"network_{name.removeprefix('net_').removesuffix('_ema')}"


def read_entry(
    path: str | Path, param_key: str | None, asked_by: str | None = None, expected: Collection[str] = ()
) -> tuple[dict[str, Tensor], str | None, list[str]]:
    """Read weights and find out which entry of the file they are from.

    Args:
        path: file, see :func:`restormixer_arch.inference.weights.read_weights`.
        param_key: entry to read, or None for the best one in the file.
        asked_by: option that names the entry, which must then exist (or ``params`` instead of ``params_ema``), or None.
        expected: names of the tensors of the network to be loaded.

    Returns:
        The weights, the name of their entry (None if the file contains only tensors), and the names of all entries.

    Raises:
        UserError: if ``read_weights`` would raise it, or the file lacks the entry that the option names.
    """
    place = locate(path)
    content = read_file(place)
    entries = entries_in(content)
    fallback = param_key == AVERAGED and TRAINED in entries
    if asked_by and param_key and entries and param_key not in entries and not fallback:
        raise UserError(
            f"{asked_by}: {path} has no entry {param_key!r}, it has {', '.join(entries)}."
            f"{did_you_mean(param_key, entries)}"
        )
    return *weights_in(content, place, param_key, expected=expected), entries
