"""``infsa-bench compare``: whether the second of two runs is worse than the first."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from infsa_bench.analyze.baseline import Baseline, load_side
from infsa_bench.analyze.compare import Comparison, compare
from infsa_bench.analyze.noise import NOISE, Noise, load_noise, usable_noise
from infsa_bench.errors import SpecError, UnknownNameError
from infsa_bench.report.comparison import (
    render_comparison_json,
    render_comparison_markdown,
    render_comparison_text,
)
from infsa_bench.report.export import render_annotations

FORMATS = ("term", "md", "json", "annotations")


def compare_runs(
    base_path: Path,
    new_path: Path,
    console: Console,
    *,
    allow_mismatch: bool = False,
    strict: bool = False,
    noise_path: Path | None = None,
    form: str = "term",
) -> int:
    """Print what became of the base's cells; return the exit code.

    Raises:
        SpecError: a side is missing or empty, or the noise is another machine's.
        SchemaError: a file cannot be read.
    """
    if form not in FORMATS:
        raise UnknownNameError("format", form, FORMATS)
    base, new = load_side(base_path), load_side(new_path)
    noise = find_noise(noise_path, {base_path: base, new_path: new})
    comparison = compare(base, new, noise)
    if comparison.is_comparable or allow_mismatch:
        refuse_disjoint(base, new, comparison)
    code = comparison.exit_code(is_strict=strict, is_mismatch_allowed=allow_mismatch)
    print_comparison(comparison, code, form, console)
    return code


def refuse_disjoint(base: Baseline, new: Baseline, comparison: Comparison) -> None:
    """Refuse two sides without a cell in common.

    Raises:
        SpecError: there is none.
    """
    has_cells = len(comparison.added) < len(new.cells)
    if not has_cells and not (base.limits and new.limits):
        raise SpecError(f"{base.name} and {new.name} have no cell in common")


def print_comparison(comparison: Comparison, code: int, form: str, console: Console) -> None:
    """Print a comparison in one of the :data:`FORMATS`, and what the exit code means where people read it."""
    if form == "json":
        text = render_comparison_json(comparison, code)
    elif form == "md":
        text = render_comparison_markdown(comparison)
    elif form == "annotations":
        text = render_annotations(comparison) + conclusion(comparison, code) + "\n"
    else:
        text = render_comparison_text(comparison) + conclusion(comparison, code) + "\n"
    console.print(text, end="", markup=False, highlight=False, soft_wrap=True)


def conclusion(comparison: Comparison, code: int) -> str:
    """Return one line: what follows."""
    regressions = len(comparison.regressions)
    match code:
        case 1:
            return f"{regressions} regression{'' if regressions == 1 else 's'}"
        case 3:
            return "not comparable: see above; --allow-mismatch compares all the same"
        case 4:
            return "no regression, but not everything could be told"
    return "no regression"


def find_noise(path: Path | None, sides: dict[Path, Baseline]) -> Noise | None:
    """Return the machine's noise: from the file that was named, else from a run that has it; None without any.

    Raises:
        SpecError: the file is missing, or of another machine than the sides.
        SchemaError: it cannot be read.
    """
    named = {str(side_path): side for side_path, side in sides.items()}
    if path is not None:
        noise = load_noise(path)
        reason = usable_noise(noise, named)
        if reason is not None:
            raise SpecError(f"{path}: {reason}")
        return noise
    for side_path in reversed(sides):
        file = side_path / NOISE
        if side_path.is_dir() and file.is_file():
            noise = load_noise(file)
            if usable_noise(noise, named) is None:
                return noise
    return None
