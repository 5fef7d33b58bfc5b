"""``infsa-bench table1`` and the Python API as their users meet them."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from test_cli import CommandLine, fake_launcher

import infsa_bench
from infsa_bench.analyze.table1 import STRESS_CELLS, TABLE_CELLS
from infsa_bench.commands.options import SweepRequest
from infsa_bench.commands.table1 import ablation_cases, table_cases
from infsa_bench.errors import SpecError
from infsa_bench.store import load, load_manifest

COMMITTED = Path(__file__).parent.parent.parent / "results"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> CommandLine:
    """The command line over a worker that measures nothing and has every device."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("infsa_bench.commands.sweep.Launcher", fake_launcher())
    return CommandLine(monkeypatch, capfd, tmp_path)


def test_the_paper_against_itself(run: CommandLine) -> None:
    """Ratio 1.00 everywhere, 300 and 200 W, and the four rows that infer slower than they train."""
    rows = list(csv.DictReader(io.StringIO(run("table1", "paper", "--against", "paper", "--format", "csv").out)))
    assert len(rows) == 39
    for row in rows:
        for name in ("latency_ratio", "throughput_ratio", "joules_per_image_ratio"):
            assert float(row[name]) == 1
        for side in ("ours", "theirs"):
            assert round(float(row[f"{side}_implied_watts"]), -1) == (300 if row["phase"] == "train" else 200)
            assert row[f"{side}_energy_kind"] == "assumed"
    claims = json.loads(run("table1", "paper", "--format", "json").out)["tables"][0]["claims"]
    slower = [(claim["config"], claim["ours"]["names"]) for claim in claims if claim["kind"] == "slower in inference"]
    assert slower == [("4L-64H", ["softmax", "infsa-pure"]), ("24L-16H", ["softmax", "infsa-pure"])]


def test_a_committed_run_beside_the_paper(run: CommandLine) -> None:
    (folder,) = COMMITTED.glob("cpu-*")
    for form in ("md", "tex", "csv", "json", "term"):
        result = run("table1", str(folder), "--format", form)
        assert result.code == 0, result.err
        assert result.err == ""
        assert "infsa-linear" in result.out
    assert run("table1", str(folder), "--against", str(folder), "--format", "json").code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a run, or paper for the published numbers, or add --measure"),
        (["nowhere"], "nowhere is no run"),
        (["paper", "--format", "xml"], "unknown format 'xml'"),
        (["paper", "--against", "nowhere"], "nowhere is no run"),
        (["paper", "--measure"], "the paper's cells were measured by its authors"),
        (["paper", "--ablation"], "--ablation sets a run beside the paper"),
        (["paper", "--replicates", "3"], "--replicates: only together with --measure"),
        (["paper", "--impl", "fast", "--resume"], "--impl, --resume: only together with --measure"),
        (["paper", "--dry-run"], "--dry-run: only together with --measure"),
        (["--measure", "--phase", "test"], "unknown phase 'test'"),
        (["--measure", "--device", "tpu"], "unknown device 'tpu'"),
        (["--measure", "--impl", "fastest"], "unknown implementation 'fastest'"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(run: CommandLine, words: list[str], message: str) -> None:
    result = run("table1", *words)
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1
    assert list(run.folder.iterdir()) == []


def test_measuring_is_of_exactly_the_cells_of_the_table() -> None:
    cases = table_cases(SweepRequest(phase="infer,train"), "cuda", 1)
    keys = [(case.config, case.mechanism, case.phase, case.resolution) for case in cases]
    assert sorted(keys) == sorted([*TABLE_CELLS, *STRESS_CELLS])
    assert {case.implementation for case in cases} == {"fast"}
    assert {(case.phase, case.precision) for case in cases} == {("infer", "bf16"), ("train", "amp-bf16")}
    assert {(case.batch_size, case.options) for case in cases} == {(1, ())}
    assert Counter(case.phase for case in table_cases(SweepRequest(phase="infer"), "cuda", 1)) == {"infer": 20}


def test_each_replicate_is_a_pass_over_all_cells() -> None:
    cases = table_cases(SweepRequest(phase="infer,train"), "cuda", 3)
    assert [case.replicate for case in cases] == [0] * 39 + [1] * 39 + [2] * 39
    assert len({case.id for case in cases}) == 117


def test_the_paper_protocol_is_in_its_precision() -> None:
    cases = table_cases(SweepRequest(phase="infer", protocol="paper"), "cuda", 1)
    assert {case.precision for case in cases} == {"amp-fp16"}


def test_cells_of_the_ablation() -> None:
    cases = ablation_cases(SweepRequest(phase="infer,train"), "cuda", 1)
    assert {(case.mechanism, case.config, case.resolution, case.batch_size) for case in cases} == {
        ("infsa-linear", "4L-64H", 224, 64)
    }
    options = {
        implementation: {case.options for case in cases if case.implementation == implementation}
        for implementation in ("reference", "fast")
    }
    rho = {(("rho", value),) for value in ("0.3", "0.5", "0.7", "0.9")}
    assert options["fast"] == {(), *rho}
    assert options["reference"] == {(), *rho, (("activation", "gelu"),), (("activation", "silu"),)}
    assert len(cases) == len({case.id for case in cases}) == 2 * (7 + 5)
    assert len(ablation_cases(SweepRequest(phase="infer", impl="fast"), "cuda", 1)) == 5


def test_measuring_prints_the_table_and_writes_the_report(run: CommandLine) -> None:
    result = run("table1", "results/mine", "--measure", "--device", "cuda:0", "--format", "csv")
    assert result.code == 0, result.err
    rows = list(csv.DictReader(io.StringIO(result.out)))
    assert {row["ours_status"] for row in rows} == {"ok"}
    assert len(rows) == len(load(run.folder / "results/mine").records) == 39
    assert (run.folder / "reports/mine/table.csv").is_file()
    assert "39 cells planned" in result.err


def test_the_paper_beside_each_side_of_a_run_and_a_run_beside_the_most_similar(run: CommandLine) -> None:
    (folder,) = COMMITTED.glob("cpu-*")
    for words in (["paper", "--against", str(folder)], [str(folder), "--against", str(folder)]):
        tables = json.loads(run("table1", *words, "--format", "json").out)["tables"]
        pairs = [(table["ours"]["implementation"], table["theirs"]["implementation"]) for table in tables]
        expected = ["as published"] * 2 if words[0] == "paper" else ["reference", "fast"]
        assert pairs == list(zip(expected, ("reference", "fast"), strict=True))


def test_measuring_goes_on_where_it_stopped(run: CommandLine) -> None:
    words = ["table1", "results/mine", "--measure", "--device", "cuda:0", "--energy", "none"]
    assert run(*words, "--phase", "infer").code == 0
    assert len(load(run.folder / "results/mine").records) == 20
    assert "holds a run already: add --resume to finish it, or choose another folder" in run(*words).err
    assert run(*words, "--resume").code == 0
    assert len(load(run.folder / "results/mine").records) == 39


def test_without_a_name_the_run_gets_one_and_a_dry_run_writes_nothing(run: CommandLine) -> None:
    dry = run("table1", "--measure", "--dry-run", "--device", "cuda:0")
    assert (dry.code, list(run.folder.iterdir())) == (0, [])
    assert "39 cells planned" in dry.out
    assert run("table1", "--measure", "--device", "cuda:0", "--phase", "infer", "--energy", "none").code == 0
    (folder,) = (run.folder / "results").iterdir()
    assert folder.name.startswith("table1-")


def test_the_ablation_is_measured_and_shown(run: CommandLine) -> None:
    words = ["table1", "results/mine", "--ablation", "--measure", "--device", "cuda:0", "--energy", "none"]
    result = run(*words)
    assert result.code == 0, result.err
    assert "Ablation of infsa-linear (fast, amp-bf16 and bf16, eager)" in " ".join(result.out.split())
    for form in ("md", "csv", "tex", "json"):
        assert run("table1", "results/mine", "--ablation", "--format", form).code == 0
    assert "has no cell of the nine mechanisms, with one image a batch" in run("table1", "results/mine").err


def test_a_run_without_the_ablation_says_how_to_get_it(run: CommandLine) -> None:
    (folder,) = COMMITTED.glob("cpu-*")
    assert (
        "has no cell of the ablation; measure them with: table1 --ablation --measure"
        in run("table1", str(folder), "--ablation").err
    )


def test_from_python(run: CommandLine, capfd: pytest.CaptureFixture[str]) -> None:
    found = infsa_bench.run_sweep(
        res=[224, 512],
        mechanisms=("softmax", "infsa-linear"),
        impl="fast",
        config="4L-64H",
        device="cuda:0",
        out="results/mine",
        peaks=False,
    )
    assert isinstance(found, infsa_bench.Run)
    assert found.name == "mine"
    frame = found.frame()
    assert list(frame.resolution) == [224, 224, 512, 512]
    assert {"latency_seconds", "peak_memory_bytes", "joules_per_image", "tokens"} <= set(frame.columns)
    assert infsa_bench.load_run("results/mine") == found
    command = load_manifest(Path("results/mine")).command
    assert command[:2] == ("infsa-bench", "sweep")
    assert set(command[2:]) == {
        "--res=224,512",
        "--mechanisms=softmax,infsa-linear",
        "--impl=fast",
        "--config=4L-64H",
        "--device=cuda:0",
        "--no-peaks",
        "--out=results/mine",
    }
    assert capfd.readouterr().out == ""


def test_python_says_what_is_wrong(run: CommandLine, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SpecError, match="not a positive multiple of 16"):
        infsa_bench.run_sweep(res=225)
    with pytest.raises(TypeError, match="resolution"):
        infsa_bench.run_sweep(resolution=224)
    with pytest.raises(SpecError, match="is no run"):
        infsa_bench.load_run("nowhere")
    words = {"mechanisms": "softmax", "impl": "fast", "option": "backend=math"}
    quiet = infsa_bench.run_sweep(res=224, device="cuda:0", out="results/quiet", is_quiet=True, **words)
    assert {row.case.options for row in quiet.rows} == {(("backend", "math"),)}
    assert capfd.readouterr() == ("", "")


def test_the_public_names() -> None:
    assert set(infsa_bench.__all__) <= set(dir(infsa_bench))
    assert all(getattr(infsa_bench, name) for name in infsa_bench.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = infsa_bench.nothing  # type: ignore[attr-defined]


def test_the_public_names_cost_nothing_until_they_are_used() -> None:
    code = "import sys, infsa_bench; assert not {'pandas', 'matplotlib', 'torch', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import sys, infsa_bench; infsa_bench.load_run; infsa_bench.figures; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
