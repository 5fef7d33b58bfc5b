"""``infsa-bench layers``: single attention layers, ``reference`` beside ``fast``, in one process."""

from __future__ import annotations

import datetime
import math
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from infsa_bench.codec import decode
from infsa_bench.commands.options import check_device
from infsa_bench.errors import SpecError, SweepStoppedError
from infsa_bench.layers import LayerRun, LayerTimes, write_layers
from infsa_bench.machine import Environment
from infsa_bench.quoting import one_line
from infsa_bench.report.layers import REPORT, layer_line, render_layers
from infsa_bench.spec import parse_mechanisms, parse_whole_numbers
from infsa_bench.sweep import utc_now
from infsa_models.registry import EMBED_DIM, MECHANISMS

LEAST_ROUNDS = 3
"""Fewer have no median worth the name."""


def layers(
    device: str, mechanisms: str, heads: str, tokens: str, rounds: int, out: Path | None, console: Console
) -> None:
    """Time the layers, print one line each, and keep the times and a table in ``out``.

    Raises:
        SpecError: an option makes no sense, the device cannot be used, or ``out`` is taken.
        SweepStoppedError: the process that times ended before its time, or the disk gave up.
    """
    check_device(device)
    names = parse_mechanisms(mechanisms)
    if elsewhere := [name for name in names if name not in MECHANISMS]:
        raise SpecError(f"{elsewhere[0]} has no two implementations to compare")
    head_counts, token_counts = parse_whole_numbers(heads, "number of heads"), parse_whole_numbers(tokens, "tokens")
    for count in head_counts:
        if count < 1 or EMBED_DIM % count or EMBED_DIM // count % 4:
            raise SpecError(f"{count} heads do not divide the width of {EMBED_DIM} into heads of a multiple of four")
    for count in token_counts:
        if count < 2 or math.isqrt(count - 1) ** 2 != count - 1:
            raise SpecError(f"{count} tokens are no square grid and a class token: write 197, 1025, 4097, ...")
    if rounds < LEAST_ROUNDS:
        raise SpecError(f"--rounds must be {LEAST_ROUNDS} or more, not {rounds}")
    out = out or Path("results") / f"layers-{device.replace(':', '')}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    try:
        out.mkdir(parents=True)
    except FileExistsError:
        raise SpecError(f"{out} exists; choose another folder") from None
    except OSError as error:
        raise SpecError(f"cannot write to {out}: {error.strerror or error}") from error
    try:
        run = _timed(device, rounds, names, head_counts, token_counts, console)
    except SpecError:
        out.rmdir()
        raise
    try:
        write_layers(out, run)
        (out / REPORT).write_text(render_layers(run))
    except OSError as error:
        raise SweepStoppedError(f"cannot write to {out}: {error}") from error
    console.print(f"times: {out}", highlight=False, markup=False, soft_wrap=True)


def _timed(
    device: str,
    rounds: int,
    mechanisms: tuple[str, ...],
    heads: tuple[int, ...],
    tokens: tuple[int, ...],
    console: Console,
) -> LayerRun:
    """Start the process that times, and print a layer as soon as it is done."""
    lists = (",".join(mechanisms), ",".join(map(str, heads)), ",".join(map(str, tokens)))
    command = [sys.executable, "-m", "infsa_bench.execute.layer_benchmark", device, str(rounds), *lists]
    found: list[LayerTimes] = []
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        first = process.stdout.readline()
        environment = decode(Environment, first) if first else None
        for line in process.stdout:
            found.append(decode(LayerTimes, line))
            console.print(layer_line(found[-1]), highlight=False, markup=False, soft_wrap=True)
        process.wait()
        errors.seek(0)
        complaint = errors.read().strip().splitlines()
    if process.returncode != 0 or environment is None:
        last = one_line(complaint[-1]) if complaint else f"exit code {process.returncode}"
        if environment is None:
            raise SpecError(f"device {device!r} cannot be used: {last}")
        raise SweepStoppedError(f"timing ended after {len(found)} layers: {last}")
    return LayerRun(
        created_utc=utc_now(),
        environment=environment,
        embed_dim=EMBED_DIM,
        precision="fp32",
        rounds=rounds,
        layers=tuple(found),
    )
