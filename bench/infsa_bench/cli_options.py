"""The options that several commands have, with what their help says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Impl = Annotated[str | None, typer.Option(help="Implementations: reference, fast. GPU: fast, CPU: both.")]
Dtype = Annotated[
    str | None,
    typer.Option(help="fp32, bf16, fp16, amp-bf16, amp-fp16. GPU: bf16, training amp-bf16; CPU: fp32."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda:N.")]
Devices = Annotated[str, typer.Option(help="auto, cpu, cuda:N; several with commas; all for every GPU.")]
Engine = Annotated[str, typer.Option(help="Where workers run: local, ray (needs infsa-bench[ray]).")]
RayAddress = Annotated[str | None, typer.Option(help="Of the Ray cluster. Default: auto, the one of this machine.")]
Accelerator = Annotated[str | None, typer.Option(help="With ray: only nodes of this accelerator type: A100, H100.")]
PerAccelerator = Annotated[
    bool, typer.Option("--per-accelerator", help="With ray: a run on each accelerator type, in OUT-<type>.")
]
Execution = Annotated[str, typer.Option(help="eager, compile, cuda-graph.")]
Options = Annotated[
    list[str] | None,
    typer.Option(help="[MECHANISM.]NAME=VALUE[,VALUE]: softmax.backend=flash,math; cls_prune=1. Repeatable."),
]
ProtocolName = Annotated[
    str, typer.Option(help="quick, full (3 replicates), gate (5), paper (50 + 300 calls, amp-fp16).")
]
Replicates = Annotated[
    int | None, typer.Option(help="Passes over all cells, each in a fresh process. Default: by protocol.")
]
Energy = Annotated[str, typer.Option(help="auto (by protocol), quick (3 trials of 2 s a cell), full (5 of 5 s), none.")]
Seed = Annotated[int, typer.Option(help="Of weights and inputs.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the run: results/mine, reported in reports/mine.")]
Shard = Annotated[
    str | None, typer.Option(help="Only part i of n, e.g. 0/4: about equal in work, for infsa-bench merge.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and its predictions; write nothing.")]
