"""Compile every kernel as the real launches would, for GPUs that are not there; print one JSON line a kernel.

``python compiled_kernels.py CAPABILITY...``, without TRITON_INTERPRET. The launches are those of the package; only
Triton's own start of a kernel is replaced, by what records its arguments.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from infsa_models.kernels import mean_context, norm, relu_attention
from infsa_models.kernels.mean_context_steps import Norm
from infsa_models.kernels.mlp import linear_gelu
from infsa_models.kernels.patches import embed_patches
from infsa_models.mean_context import Projections

TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
WARP = 32
TOKENS, WIDTH = 1025, 1024
NAME = re.compile(r"^@!?U?P\w+\s+")
"""The predicate before the name of an instruction."""

ALIGNED = [["tt.divisibility", 16]]

launches: list[tuple[JITFunction, tuple[Any, ...], dict[str, Any]]] = []


def record_launch(kernel: Any, *arguments: Any, grid: Any, warmup: bool = False, **constants: Any) -> None:
    launches.append((kernel, arguments, constants))


def launch_all(dtype: torch.dtype) -> None:
    """Launch every kernel at the widths and heads of the published models."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    x, matrix, bias = empty(1, TOKENS, WIDTH), empty(WIDTH, WIDTH), empty(WIDTH)
    of = Projections(matrix, bias, matrix, bias, matrix, bias)
    for num_heads in (64, 16):
        mean_context.pooled_context(x, Norm(bias, bias, 1e-6), of, empty(), num_heads)
        pooled = mean_context.pool_tokens(x, of, num_heads, keep_queries=True)
        mean_context.pooling_gradients(x, of, pooled, pooled.context)
        relu_attention.relu_attention(x, x, x, num_heads, 1.0)
        relu_attention.relu_attention_backward(x, x, x, x, torch.empty(1, num_heads), num_heads, 1.0)
    norm.add_layer_norm_(x, x[:, :1], bias, bias, 1e-6, bias)
    linear_gelu(x, empty(4 * WIDTH, WIDTH), empty(4 * WIDTH))
    embed_patches(empty(1, 3, 512, 512), empty(WIDTH, 3, 16, 16), bias, empty(1, 1, WIDTH), x)


def compiled(kernel: JITFunction, arguments: tuple[Any, ...], constants: dict[str, Any], capability: int) -> Any:
    """Compile one launch, specialised as Triton would specialise it."""
    options = {name: constants[name] for name in ("num_warps", "num_stages") if name in constants}
    values = dict(zip(kernel.arg_names, arguments, strict=False)) | constants
    signature, fixed, attributes = {}, {}, {}
    for index, (name, parameter) in enumerate(zip(kernel.arg_names, kernel.params, strict=True)):
        value = values[name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            signature[name], fixed[name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name], attributes[(index,)] = TYPES[value.dtype], ALIGNED
        elif isinstance(value, int):
            signature[name] = "i32"
            if value % 16 == 0:
                attributes[(index,)] = ALIGNED
        else:
            signature[name] = "fp32"
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, WARP), options=options)


def instructions(cubin: Path) -> list[tuple[int, str, str]]:
    """Return address, name and whole text of all machine instructions."""
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", _cuobjdump("-sass", cubin))
    return [(int(address, 16), NAME.sub("", text).split()[0].split(".")[0], text) for address, text in found]


def in_loops(code: list[tuple[int, str, str]]) -> set[str]:
    """Return the names of the instructions that stand in a loop."""
    names: set[str] = set()
    for address, name, text in code:
        target = re.search(r"0x([0-9a-f]+)", text)
        if name == "BRA" and target and int(target.group(1), 16) < address:
            names |= {other for place, other, _ in code if int(target.group(1), 16) <= place <= address}
    return names


def _cuobjdump(option: str, cubin: Path) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, option, cubin], capture_output=True, text=True, check=True).stdout


def main() -> None:
    JITFunction.run = record_launch
    launch_all(torch.bfloat16)
    seen = set()
    for capability in map(int, sys.argv[1:]):
        for kernel, arguments, constants in launches:
            key = (
                capability,
                kernel.__name__,
                repr(constants),
                str([getattr(value, "dtype", "") for value in arguments]),
            )
            if key in seen:
                continue
            seen.add(key)
            result = compiled(kernel, arguments, constants, capability)
            with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
                cubin.write(result.asm["cubin"])
                cubin.flush()
                code = instructions(Path(cubin.name))
            print(
                json.dumps(
                    {
                        "capability": capability,
                        "kernel": kernel.__name__,
                        "head_dim": constants.get("HEAD_DIM"),
                        "shared_bytes": result.metadata.shared,
                        "spills_in_loop": bool(in_loops(code) & {"LDL", "STL"}),
                        "tensor_core_instructions": sum(name in ("HGMMA", "HMMA") for _, name, _ in code),
                        "atomics": len(re.findall(r"\batom\.|\bred\.", result.asm["ptx"])),
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
