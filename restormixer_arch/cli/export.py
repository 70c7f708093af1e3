"""``basicsr export``: write a RestorMixer as safetensors or ONNX for other tools."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restormixer_arch.cli.parsing import Parser, add_output, path_name
from restormixer_arch.config.yaml_file import locate_option_file, read_options
from restormixer_arch.errors import OptionErrors, UserError, did_you_mean
from restormixer_arch.output import print_result

if TYPE_CHECKING:
    from restormixer_arch.restormixer_arch import RestorMixer

DESCRIPTION = """Write a RestorMixer for other tools: FILE.safetensors holds its weights and what is needed to build it,
for 'basicsr restore' and spandrel; FILE.onnx holds the whole network, for any batch size and for images of any size in
multiples of 8."""
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def parser() -> Parser:
    parser = Parser("export", DESCRIPTION)
    parser.add_argument(
        "weights", type=path_name, metavar="WEIGHTS", help=".pth, .safetensors, a folder, or ORG/NAME on a hub"
    )
    add_output(parser, name="output", required=True, metavar="FILE", help="*.safetensors or *.onnx")
    parser.add_argument("--param-key", metavar="NAME", help="entry of WEIGHTS (default: the averaged weights, if any)")
    parser.add_argument(
        "--opt",
        metavar="FILE",
        help="option file that supplies heads, windows and merge of the scans for weights that do not contain them",
    )
    parser.add_argument(
        "--half",
        action="store_true",
        help="for .onnx only: float16 weights and arithmetic, except within the scans; inputs and outputs stay float32",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    return parser


def run(arguments: list[str]) -> int:
    """Write the file. Returns the exit code.

    Raises:
        UserError: if the weights are not those of a RestorMixer, or the file cannot be written.
    """
    args = parser().parse_args(arguments)
    write = _writer(args.output)
    if args.half and args.output.suffix != ".onnx":
        raise UserError(
            f"--half: is for *.onnx only, got {str(args.output)!r}; other formats do not store the precision"
        )
    if args.output.exists() and not args.overwrite:
        raise UserError(f"-o: {str(args.output)!r} already exists; use --overwrite to replace it")
    if not args.output.parent.is_dir():
        raise UserError(f"-o: there is no folder {str(args.output.parent)!r}")
    options = None if args.opt is None else _network_options(args.opt)
    from restormixer_arch.inference.onnx_network import is_onnx
    from restormixer_arch.inference.weights import load_network
    from restormixer_arch.output import atomic_paths

    if is_onnx(args.weights):
        raise UserError(f"{args.weights}: is already an ONNX file; give the weights that it was exported from")

    network = load_network(args.weights, args.param_key, options)
    try:
        with atomic_paths([args.output]) as [partial]:
            remark = write(network, partial, args)
    except OSError as error:
        raise UserError(f"-o: {str(args.output)!r} cannot be written ({error.strerror})") from error
    print_result(f"{args.output}: {remark}; {args.output.stat().st_size / 1e6:.1f} MB")
    return 0


def _writer(output: Path) -> Callable[[RestorMixer, Path, Namespace], str]:
    writers = {".safetensors": _write_safetensors, ".onnx": _write_onnx}
    if output.suffix not in writers:
        hint = did_you_mean(output.suffix, writers)
        raise UserError(f"-o: {str(output)!r} must end in {' or '.join(writers)}.{hint}")
    missing = [name for name in ONNX_PACKAGES if output.suffix == ".onnx" and find_spec(name) is None]
    if missing:
        raise UserError(f"basicsr export: needs {', '.join(missing)}; pip install 'restormixer[export]'")
    return writers[output.suffix]


def _network_options(option_file: str) -> dict[str, Any]:
    """Return the arguments in the section ``network_g``, from which a RestorMixer can be built.

    Raises:
        UserError: if the section describes another network, or has unknown or invalid arguments.
    """
    section = read_options(locate_option_file(option_file), option_file).get("network_g")
    if not isinstance(section, dict) or section.get("type") != "RestorMixer":
        raise UserError(f"--opt: {option_file}: network_g.type: 'RestorMixer' was expected")
    from restormixer_arch.basicsr_adapter import compat

    compat.apply()  # before BasicSR is imported
    from restormixer_arch.basicsr_adapter.signatures import argument_problems
    from restormixer_arch.restormixer_arch import RestorMixer

    if problems := list(argument_problems(RestorMixer, section, ("network_g",))):
        raise OptionErrors(option_file, problems)
    options = {key: value for key, value in section.items() if key != "type"}
    try:
        RestorMixer(**options)
    except (ValueError, RuntimeError, ZeroDivisionError) as error:
        raise UserError(f"{option_file}: network_g: {str(error).splitlines()[-1].strip()}") from error
    return options


def _write_safetensors(network: RestorMixer, path: Path, args: Namespace) -> str:
    from restormixer_arch.hub import to_safetensors

    path.write_bytes(to_safetensors(network))
    return f"{sum(parameter.numel() for parameter in network.parameters()):,} parameters"


def _write_onnx(network: RestorMixer, path: Path, args: Namespace) -> str:
    from restormixer_arch.export.onnx_file import OPSET, compare_outputs, export_onnx, overflows_in_float16

    if args.half and overflows_in_float16(network):
        raise UserError(f"--half: the network of {args.weights} overflows in float16; export it without --half")
    export_onnx(network, path, half=args.half)
    largest, psnr = compare_outputs(network, path)
    number = "float16, " if args.half else ""
    closeness = f", {psnr:.1f} dB" if args.half else ""
    return f"differs from torch by at most {largest:.1e}{closeness}, run with onnxruntime; {number}opset {OPSET}"
