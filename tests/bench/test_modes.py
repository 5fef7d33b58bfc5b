from __future__ import annotations

import subprocess
import sys

import torch

from infsa_bench.execute.modes import compiled_graphs


def test_compiling_again_is_counted() -> None:
    def double(values: torch.Tensor) -> torch.Tensor:
        return values * 2

    compiled = torch.compile(double, dynamic=False, backend="eager")
    before = compiled_graphs()
    for _ in range(3):
        compiled(torch.zeros(4))
    assert compiled_graphs() == before + 1
    # Another shape, with dynamic=False, is another graph.
    compiled(torch.zeros(5))
    assert compiled_graphs() == before + 2
    compiled(torch.zeros(4))
    compiled(torch.zeros(5))
    assert compiled_graphs() == before + 2


def test_who_never_compiles_does_not_load_the_compiler() -> None:
    program = (
        "import sys; from infsa_bench.execute import modes; before = set(sys.modules);"
        "assert modes.compiled_graphs() == 0; assert set(sys.modules) == before"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
