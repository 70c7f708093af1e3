"""Compile the Triton kernels for a GPU that need not exist, and print the resources they use as JSON lines.

    python tests/triton_resources.py COMPUTE_CAPABILITY DTYPE...      for example: 90 fp32 bf16

Run it in a separate process, since Triton must not be in interpreter mode.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from restormixer_arch.selective_scan import triton_kernels as kernels
from restormixer_arch.selective_scan.triton_scan import CONFIG

TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
STREAMS = ("v", "M", "x", "delta", "Bm", "C", "dy", "out", "dx", "ddelta")  # in the dtype of the network
STATE_STRIDES = ("m_n", "b_n", "c_n")  # 1, since B and C are views of one product
EVEN_STRIDES = re.compile(r"[xdvyoe]_[bpk]")  # multiples of D, which is a multiple of 16
NOT_TOKENS = re.compile(r"[wmbc]_[bpk]|w_s")


def signature_of(kernel, constants, dtype):
    """Return the types of the arguments, and which are multiples of 16, as in a launch by the network."""
    types, aligned = {}, []
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            types[name] = "constexpr"
        elif name in kernels.SIZES:
            types[name] = "i32"
        elif name == "D" or EVEN_STRIDES.fullmatch(name):
            types[name] = "i32"
            aligned.append(place)
        elif NOT_TOKENS.fullmatch(name):
            types[name] = "i32"
        else:
            types[name] = f"*{dtype}" if name in STREAMS else "*fp32"
            aligned += [place] * (name not in ("M", "Bm", "C"))  # views of a product may start anywhere
    return types, {(place,): [["tt.divisibility", 16]] for place in aligned}


def resources(kernel, constants, dtype, capability, warps):
    """Return the registers and spills (bytes of stack and local memory) of a thread, and a program's shared memory."""
    constants = constants | {name: 1 for name in STATE_STRIDES if name in kernel.arg_names}
    types, attributes = signature_of(kernel, constants, dtype)
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=attributes)
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": warps})
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder, "kernel.cubin")
        binary.write_bytes(compiled.asm["cubin"])
        report = subprocess.run([TOOL, "-res-usage", binary], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", report)
    registers, stack, _, local = map(int, found.groups())
    return {
        "kernel": kernel.__name__,
        "registers": registers,
        "spills": stack + local,
        "shared": compiled.metadata.shared,
    }


def variants():
    """Yield the kernels that a training step launches, in the variants that need the most resources."""
    common = {"K": 3, "N": 16, "BD": CONFIG.channels}
    walk = common | {"T": CONFIG.rows, "SOFTPLUS": True, "WIDE": False}
    for reverse in (False, True):
        yield kernels.ends_kernel, walk | {"REVERSE": reverse}
    yield kernels.carry_kernel, common | {"U": CONFIG.loads, "REVERSE": True}
    for order, first, last in ((1, True, False), (3, False, True)):
        way = walk | {"ORDER": order, "FIRST": first, "LAST": last}
        yield kernels.apply_kernel, way | {"KEEP": True}
        yield kernels.gradient_kernel, way


def main(capability, *dtypes):
    for dtype in dtypes:
        for kernel, constants in variants():
            found = resources(kernel, constants, dtype, int(capability), CONFIG.warps)
            sys.stdout.write(json.dumps(found | {"dtype": dtype}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
