from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from table1_records import measured, run_of, table1_records

from infsa_bench.analyze.ablation import ablation
from infsa_bench.analyze.sides import Estimate, paper_side, sides_of
from infsa_bench.analyze.table1 import Table1, table1
from infsa_bench.report.ablation import ablation_csv, ablation_json, ablation_latex, ablation_markdown
from infsa_bench.report.grid import Grid, escape_latex, grid_latex, grid_markdown
from infsa_bench.report.table1_forms import print_table1, table1_csv, table1_json, table1_latex, table1_markdown

PAPER = paper_side()
HOSTILE = 'a_b & c% $d$ #e {f} ~g ^h \\i <j> [k] "l" `m\' é'


def fixed_tables() -> list[Table1]:
    """A run with `reference` and `fast`, beside the paper."""
    records = table1_records("reference") + table1_records("fast")
    return [table1(side, PAPER) for side in sides_of(run_of(records))]


def terminal(tables: list[Table1], width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_table1(tables, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def hostile_tables() -> list[Table1]:
    (side, *_) = sides_of(run_of(table1_records()))
    name = dataclasses.replace(side, title=HOSTILE, device=HOSTILE)
    return [table1(name, PAPER)]


def test_golden_markdown(golden: Callable[[str, str], None]) -> None:
    golden("table1.md", table1_markdown(fixed_tables()))


def test_golden_latex(golden: Callable[[str, str], None]) -> None:
    golden("table1.tex", table1_latex(fixed_tables()))


def test_golden_csv(golden: Callable[[str, str], None]) -> None:
    golden("table1.csv", table1_csv(fixed_tables()))


def test_golden_json(golden: Callable[[str, str], None]) -> None:
    golden("table1.json", table1_json(fixed_tables()))


def test_golden_terminal(golden: Callable[[str, str], None]) -> None:
    text = terminal(fixed_tables())
    golden("table1.txt", text)
    assert max(map(len, text.splitlines())) <= 80


def test_a_very_wide_terminal_has_every_column() -> None:
    wide = terminal([table1(PAPER, PAPER)], width=260)
    assert "W, paper" in wide
    assert "Implied power" not in wide
    narrow = " ".join(terminal([table1(PAPER, PAPER)]).split())
    assert (
        "Implied power, J/image over latency: inference, ours: 200 .. 201 W; inference, paper: 200 .. 201 W" in narrow
    )
    assert "column" not in narrow


def test_notes_stand_where_there_is_something_to_note() -> None:
    (side, *_) = sides_of(run_of([measured(0.1, resolution=1024, implementation="reference")]))
    text = terminal([table1(side, PAPER)])
    assert "†" not in text
    assert "Kernels: PyTorch operators: softmax" in text
    assert "†" in terminal(fixed_tables())


def test_the_farther_end_of_an_interval_counts() -> None:
    (side, *_) = sides_of(run_of([measured(0.1, resolution=1024)]))
    (key,) = side.cells
    for low, high in ((0.098, 0.101), (0.099, 0.102)):
        cell = dataclasses.replace(side.cells[key], latency_seconds=Estimate(value=0.1, low=low, high=high))
        text = terminal([table1(dataclasses.replace(side, cells={key: cell}), PAPER)])
        assert re.search(r"^softmax +100 ms +2\.0 ", text, re.MULTILINE)


def test_golden_paper(golden: Callable[[str, str], None]) -> None:
    golden("table1_paper.txt", terminal([table1(PAPER, PAPER)]))


def test_every_column_of_the_csv_has_its_type() -> None:
    frame = pd.read_csv(io.StringIO(table1_csv(fixed_tables()))).convert_dtypes()
    assert len(frame) == 2 * 39
    kinds = {name: str(kind) for name, kind in frame.dtypes.items()}
    for name in ("ours_latency_seconds", "theirs_joules_per_image", "latency_ratio_low", "ours_implied_watts"):
        assert kinds[name] == "Float64", name
    for name in ("resolution", "ours_parameters", "ours_max_resolution", "ours_processes", "ours_device_memory_bytes"):
        assert kinds[name] == "Int64", name
    assert (kinds["is_close"], kinds["mechanism"]) == ("boolean", "string")
    agent = frame[(frame.mechanism == "agent") & (frame.config == "24L-16H") & (frame.phase == "infer")]
    assert agent.ours_latency_seconds.isna().all()
    assert set(agent.ours_status) == {"timeout"}


def test_json_is_plain() -> None:
    loaded = json.loads(table1_json(fixed_tables()), parse_constant=pytest.fail)
    assert [table["ours"]["implementation"] for table in loaded["tables"]] == ["reference", "fast"]
    assert all(len(table["rows"]) == 39 for table in loaded["tables"])


def check_latex(text: str) -> None:
    """Environments are balanced, nothing is unescaped, and every row has as many cells as its table has columns."""
    code = [line for line in text.splitlines() if not line.startswith("%")]
    opened: list[str] = []
    columns = 0
    for line in code:
        for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", line):
            if kind == "begin":
                opened.append(name)
            else:
                assert opened.pop() == name
        found = re.fullmatch(r"\\begin\{tabular\}\{(.*)\}", line)
        if found:
            columns = len(re.sub(r">\{[^}]*\}|(?<=p)\{[^}]*\}", "", found[1]))
        if line.endswith(r"\\"):
            assert len(re.findall(r"(?<!\\)&", line)) == columns - 1, line
        bare = re.sub(r"\$\\(pm|dagger)\$", "", line)
        assert not re.search(r"(?<!\\)[%$#_~^]", re.sub(r"^\\label\{[^}]*\}$", "", bare)), line
        assert line.isascii()
        balance = len(re.findall(r"(?<!\\)\{", line)) - len(re.findall(r"(?<!\\)\}", line))
        assert balance == 0, line
    assert not opened


@pytest.mark.parametrize("tables", [fixed_tables, hostile_tables, lambda: [table1(PAPER, PAPER)]])
def test_latex_is_whole(tables: Callable[[], list[Table1]]) -> None:
    text = table1_latex(tables())
    check_latex(text)
    assert text.count(r"\begin{tabular}") == 7 * len(tables())


def test_what_latex_reads_as_commands_is_escaped() -> None:
    assert escape_latex("a_b & 5% $x$ ~ ^ \\ {") == (
        r"a\_b \& 5\% \$x\$ \textasciitilde{} \textasciicircum{} \textbackslash{} \{"
    )
    assert escape_latex("1 ± 2 † é\n") == r"1 $\pm$ 2 $\dagger$ ?"
    grid = Grid(title=HOSTILE, columns=("[x", "y"), rows=(("[1", "2"),))
    check_latex("\n".join(grid_latex(grid, "tab:a_b")))


def compiled(text: str, folder: Path) -> int:
    """Return the exit code of LaTeX for a document around ``text``."""
    source = "\\documentclass{article}\n\\usepackage[T1]{fontenc}\n\\usepackage{array,booktabs,textcomp}\n"
    source += "\\begin{document}\n"
    (folder / "tables.tex").write_text(source + text + "\\end{document}\n", encoding="utf-8")
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    done = subprocess.run(words, cwd=folder, capture_output=True)
    # Nothing stands out over the margin by more than a hair.
    too_wide = re.findall(r"Overfull \\hbox \(([0-9.]+)pt", (folder / "tables.log").read_text(errors="replace"))
    assert [width for width in too_wide if float(width) > 5] == []
    return done.returncode


@pytest.mark.soak
@pytest.mark.parametrize("tables", [fixed_tables, hostile_tables])
def test_latex_compiles(tables: Callable[[], list[Table1]], tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("needs pdflatex with booktabs: apt-get install texlive-latex-recommended")
    assert compiled(table1_latex(tables()), tmp_path) == 0
    assert (tmp_path / "tables.pdf").stat().st_size > 10_000


def test_names_from_files_stay_text() -> None:
    markdown = table1_markdown(hostile_tables())
    assert "<j>" not in markdown.replace("\\<j\\>", "")
    (header,) = {line.count("|") - line.count("\\|") for line in markdown.splitlines() if line.startswith("| claim")}
    assert header == 7
    assert "\x1b" not in terminal(hostile_tables())


def test_a_grid_has_no_crooked_rows() -> None:
    with pytest.raises(ValueError, match="every row of 't' has 2 cells"):
        Grid(title="t", columns=("a", "b"), rows=(("1",),))
    grid = Grid(title="t", columns=("a", "b", "c"), rows=(("1", "2", "3"),), left=frozenset({"a"}))
    assert grid.only(("c", "x", "a")).rows == (("3", "1"),)
    assert grid_markdown(grid) == ["| a | b | c |", "|---|---:|---:|", "| 1 | 2 | 3 |"]


def ablation_run() -> list[object]:
    model = {"mechanism": "infsa-linear", "resolution": 224, "batch_size": 64, "precision": "bf16"}
    options: list[tuple[tuple[str, str], ...]] = [(), (("rho", "0.3"),), (("activation", "gelu"),)]
    records = [
        measured(0.010 + 0.001 * place, phase=phase, options=each, **model)
        for place, each in enumerate(options)
        for phase in ("train", "infer")
    ]
    return ablation(run_of([*records, measured(0.02, implementation="fast", **model)]))  # type: ignore[return-value]


def test_golden_ablation(golden: Callable[[str, str], None]) -> None:
    rows = ablation_run()
    golden("ablation.md", ablation_markdown(rows))  # type: ignore[arg-type]
    golden("ablation.csv", ablation_csv(rows))  # type: ignore[arg-type]
    golden("ablation.tex", ablation_latex(rows))  # type: ignore[arg-type]
    check_latex(ablation_latex(rows))  # type: ignore[arg-type]
    assert len(json.loads(ablation_json(rows))["ablation"]) == 14  # type: ignore[arg-type]
