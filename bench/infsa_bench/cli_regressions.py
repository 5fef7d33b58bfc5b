"""The part of the command line that is about regressions: compare, gate, aa, baseline, export, calibrate.

Exit codes of ``compare`` and ``gate``: 0 no regression; 1 a regression; 2 bad input; 3 not comparable; 4 doubt, with
``--strict``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

Side = Annotated[Path, typer.Argument(help="Folder of a run, or a baseline's file.")]
AllowMismatch = Annotated[
    bool, typer.Option("--allow-mismatch", help="Compare what was measured on other machines or in other ways, too.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Exit 4 where something could not be told.")]
NoiseFile = Annotated[
    Path | None, typer.Option("--noise", help="This machine's noise (infsa-bench aa), for fewer than 3 replicates.")
]

baselines = typer.Typer(no_args_is_help=True, help="What a comparison needs of a run, in one file for a repository.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("compare")(_compare)
    app.command("gate")(_gate)
    app.command("aa", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(_aa)
    app.command("export")(_export)
    app.command("calibrate")(_calibrate)
    app.add_typer(baselines, name="baseline")


def _compare(
    base: Side,
    new: Side,
    allow_mismatch: AllowMismatch = False,
    strict: Strict = False,
    noise: NoiseFile = None,
    form: Annotated[str, typer.Option("--format", help="term, md, json, annotations.")] = "term",
) -> None:
    """Compare two runs cell by cell; exits 1 where NEW is worse than BASE."""
    from infsa_bench.commands.compare import compare_runs

    code = compare_runs(base, new, Console(), allow_mismatch=allow_mismatch, strict=strict, noise_path=noise, form=form)
    raise typer.Exit(code)


def _gate(
    baseline: Annotated[Path, typer.Option(help="Folder of a run, or a baseline's file: what is to be measured.")],
    base_cmd: Annotated[
        str | None, typer.Option(help="Command that runs the other build's infsa-bench; both are measured in turns.")
    ] = None,
    base_ref: Annotated[
        str | None, typer.Option(help="The same of a commit, branch or tag; your checkout is left alone.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda:N. Default: the baseline's.")] = None,
    noise: NoiseFile = None,
    screening: Annotated[int, typer.Option(help="Fresh processes in which all cells are measured.")] = 5,
    confirming: Annotated[
        int | None, typer.Option(help="Fresh processes for suspects. Default: by the noise, 10 to 30.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for what is measured. Default: results/gate-...")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the gate in --out.")] = False,
    allow_mismatch: AllowMismatch = False,
    allow_shared: Annotated[
        bool, typer.Option("--allow-shared", help="Measure on a GPU that another sweep is using, flagged.")
    ] = False,
    strict: Strict = False,
    form: Annotated[str, typer.Option("--format", help="term, md, json, annotations.")] = "term",
) -> None:
    """Measure what a baseline holds, measure suspects again, decide; exits 1 for a regression."""
    from infsa_bench.commands.gate import GateRequest, gate

    request = GateRequest(
        baseline=baseline,
        base_cmd=base_cmd,
        base_ref=base_ref,
        device=device,
        noise=noise,
        screening=screening,
        confirming=confirming,
        out=out,
        resume=resume,
        allow_mismatch=allow_mismatch,
        allow_shared=allow_shared,
        strict=strict,
        form=form,
    )
    raise typer.Exit(gate(request, Console()))


def _aa(
    context: typer.Context,
    replicates: Annotated[int, typer.Option(help="Fresh processes.")] = 10,
    run: Annotated[
        Path | None, typer.Option("--from", help="A run with enough replicates, in place of a new one.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the new run. Default: results/aa-...")] = None,
) -> None:
    """Measure this machine's own noise, with any options of sweep; store it as noise.json in the run."""
    from infsa_bench.commands.aa import aa

    raise typer.Exit(aa(tuple(context.args), replicates, run, out, Console()))


def _export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    form: Annotated[
        str, typer.Option("--format", help="github-action-benchmark, bencher, step-summary, annotations, csv.")
    ],
    base: Annotated[
        Path | None, typer.Option(help="Compare with this run or baseline: annotations, step-summary.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File; of github-action-benchmark, a folder. Default: print.")
    ] = None,
) -> None:
    """Write a run in the format of another tool; a cell that failed is counted, never zero."""
    from infsa_bench.commands.export import export_run

    export_run(run, form, base, out, Console())


def _calibrate(
    suites: Annotated[int, typer.Option(help="At each level of noise.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the simulation.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for the table and what it was made from.")] = None,
) -> None:
    """Simulate how often gate and compare are wrong, beside simpler rules; a few minutes."""
    from infsa_bench.commands.calibrate import run_calibration

    run_calibration(suites, seed, out, Console())


@baselines.command("save")
def _save(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")],
) -> None:
    """Write the baseline of a run."""
    from infsa_bench.commands.baseline import save_baseline

    save_baseline(run, out, Console())


@baselines.command("show")
def _show(file: Side) -> None:
    """Print what a baseline holds."""
    from infsa_bench.commands.baseline import show_baseline

    show_baseline(file, Console())
