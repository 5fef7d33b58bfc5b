"""The search for the largest resolution that fits: its records, resumption and report; on a worker without torch."""

from __future__ import annotations

import dataclasses
import io
import math
import os
import signal
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import sample_records
from fake_worker import ENVIRONMENT, FIT
from rich.console import Console
from sample_records import make_case
from test_launcher import fake_command_of

from infsa_bench.analyze.max_resolution import summarize_search
from infsa_bench.analyze.predict import predict_limit
from infsa_bench.commands.audit import audit
from infsa_bench.commands.maxres import PROBE, MaxresRequest, maxres
from infsa_bench.commands.options import SweepRequest
from infsa_bench.commands.report import report_run
from infsa_bench.commands.sweep import sweep
from infsa_bench.errors import SpecError, SweepStoppedError
from infsa_bench.execute import device_lock, process
from infsa_bench.execute.device_lock import DeviceLock
from infsa_bench.execute.launcher import Launcher
from infsa_bench.record import Failure, Fit, Record
from infsa_bench.search import run_search
from infsa_bench.search_plan import Search
from infsa_bench.store import RECORDS, Manifest, RunWriter, Settings, load
from infsa_models.cost import vit_cost

MODEL = make_case(mechanism="infsa-linear", resolution=64)
SEARCH = Search(models=(MODEL,), smallest=64, largest=2048, step=64, timeout_seconds=2.0, available_bytes=2**30)


def searched(folder: Path, search: Search, *traits: str, stop_after: int | None = None) -> list[Record]:
    """Return the records that one search adds to ``folder``; it breaks off after so many."""
    settings = Settings(device="cpu", protocol=PROBE, seed=0, time_budget_seconds=None, energy="none")
    manifest = Manifest(
        created_utc="2026-01-01T00:00:00+00:00",
        command=("infsa-bench",),
        settings=settings,
        plan=(),
        environments={ENVIRONMENT.key: ENVIRONMENT},
        search=search,
    )
    made: list[Record] = []

    def finished(record: Record) -> None:
        made.append(record)
        if len(made) == stop_after:
            raise KeyboardInterrupt

    with Launcher("cpu", fake_command_of(*traits)) as launcher, RunWriter(folder, manifest) as writer:
        try:
            run_search(search, launcher, writer, finished)
        except KeyboardInterrupt:
            assert stop_after is not None
    return made


def report(folder: Path) -> tuple[str, str, dict[str, object]]:
    """Return what is printed, the Markdown and the only row of the CSV."""
    output = io.StringIO()
    markdown, table = report_run(folder, Console(file=output, width=200, color_system=None))
    (row,) = pd.read_csv(table).to_dict("records")
    return output.getvalue(), markdown.read_text(), row


@pytest.mark.parametrize("limit", [64, 700, 1000, 1984])
def test_the_limit_of_a_machine_is_found_and_confirmed(tmp_path: Path, limit: int) -> None:
    folder = tmp_path / "results/x"
    made = searched(folder, SEARCH, f"fits={limit}")
    largest = limit // 64 * 64
    sizes = [record.case.resolution for record in made]
    assert len(set(sizes)) <= 4 + math.log2((2048 - 64) / 64) + 3
    assert len({record.case.id for record in made}) == len(made)
    for record in made:
        assert isinstance(record.outcome, Fit if record.case.resolution <= largest else Failure)
    printed, markdown, row = report(folder)
    assert (row["max_resolution"], row["smallest_failing_resolution"]) == (largest, largest + 64)
    assert (row["limit"], row["is_confirmed"], row["is_at_least"]) == ("memory", True, False)
    assert (row["failure_kind"], row["failure_stage"], row["peak_memory_bytes"]) == ("oom", "build", 100)
    assert row["probes"] == len(made)
    assert sizes.count(largest) == sizes.count(largest + 64) == 3
    assert f" {largest} " in printed
    assert markdown.count("infer/eager/p") == len(made)


def test_confirmations_have_processes_of_their_own(tmp_path: Path) -> None:
    """The fake worker of a probe that fits is used again; that of a confirmation never was."""
    seen: list[bool] = []

    class Watching(Launcher):
        def renew(self) -> None:
            super().renew()
            seen.append(self._worker is None)

    folder = tmp_path / "results/x"
    settings = Settings(device="cpu", protocol=PROBE, seed=0, time_budget_seconds=None, energy="none")
    manifest = Manifest(
        created_utc="2026-01-01T00:00:00+00:00", command=(), settings=settings, plan=(), environments={}, search=SEARCH
    )
    with Watching("cpu", fake_command_of("fits=700")) as launcher, RunWriter(folder, manifest) as writer:
        run_search(SEARCH, launcher, writer, lambda record: None)
    assert seen == [True] * 4


def test_everything_fits(tmp_path: Path) -> None:
    folder = tmp_path / "results/x"
    searched(folder, SEARCH)
    printed, markdown, row = report(folder)
    assert (row["max_resolution"], row["is_at_least"], row["is_confirmed"]) == (2048, True, True)
    assert pd.isna(row["limit"])
    assert ">= 2048" in printed
    assert "\\>= 2048" in markdown


def test_nothing_fits(tmp_path: Path) -> None:
    folder = tmp_path / "results/x"
    searched(folder, SEARCH, "fits=10")
    printed, _, row = report(folder)
    assert pd.isna(row["max_resolution"])
    assert (row["smallest_failing_resolution"], row["limit"]) == (64, "memory")
    assert " none " in printed


def test_a_size_that_fits_again_is_reported(tmp_path: Path) -> None:
    """Of three sizes, all predicted to fit, the middle one does not; it is the first to be probed."""
    folder = tmp_path / "results/x"
    searched(folder, dataclasses.replace(SEARCH, smallest=640, largest=768), "hole=704")
    printed, _, row = report(folder)
    assert (row["max_resolution"], row["smallest_failing_resolution"], row["fits_again"]) == (640, 704, 768)
    assert "not monotone: fits again at 768" in printed


def test_time_is_a_limit_of_its_own(tmp_path: Path) -> None:
    model = dataclasses.replace(MODEL, options=(("behave", "hang"),))
    search = dataclasses.replace(SEARCH, models=(model,), largest=64, timeout_seconds=0.3)
    folder = tmp_path / "results/x"
    made = searched(folder, search)
    assert [record.case.replicate for record in made] == [0, 1, 2]
    _, _, row = report(folder)
    assert (row["limit"], row["failure_kind"], row["is_confirmed"]) == ("time", "timeout", True)


def test_what_is_cut_off_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = searched(tmp_path / "results/whole", SEARCH, "fits=700")
    parts: list[Record] = []
    while part := searched(tmp_path / "results/parts", SEARCH, "fits=700", stop_after=2):
        parts += part
    assert [record.case for record in parts] == [record.case for record in whole]
    assert [record.case for record in load(tmp_path / "results/parts").records] == [record.case for record in whole]


def run_command(folder: Path, monkeypatch: pytest.MonkeyPatch, *traits: str, **options: object) -> tuple[int, str]:
    monkeypatch.setattr(
        "infsa_bench.commands.maxres.Launcher", lambda device: Launcher(device, fake_command_of(*traits))
    )
    output = io.StringIO()
    request = MaxresRequest(**{"mechanism": "softmax", "impl": "reference", "out": folder, "device": "cpu"} | options)  # type: ignore[arg-type]
    code = maxres(request, Console(file=output, width=200, color_system=None))
    return code, output.getvalue()


def test_the_whole_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "results/x"
    code, printed = run_command(folder, monkeypatch, "fits=700", memory_limit="2GiB", mechanism="softmax,mlla")
    assert code == 0
    assert "2 models, image sides up to 9216 in steps of 64, 2.00 GiB of memory emulated" in printed
    assert "Memory: 2.00 GiB emulated" in printed
    assert [len(load(folder).manifest.search.models)] == [2]  # type: ignore[union-attr]
    # Again: nothing is left to do. With another mechanism: that alone.
    probes = len(load(folder).records)
    code, printed = run_command(folder, monkeypatch, resume=True, mechanism="mlla", memory_limit="2GiB")
    assert f"{probes} probes recorded already" in printed
    assert len(load(folder).records) == probes
    code, _ = run_command(folder, monkeypatch, "fits=700", resume=True, mechanism="soft")
    assert {record.case.mechanism for record in load(folder).records[probes:]} == {"soft"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 50}, "--step must be a positive multiple of 16"),
        ({"step": 0}, "--step must be a positive multiple of 16"),
        ({"max_res": 32}, "--max-res must be between --step and 32768, not 32"),
        ({"max_res": 10**9}, "--max-res must be between --step and 32768"),
        ({"mechanism": "softmaks"}, "did you mean 'softmax'"),
        ({"impl": "fastest"}, "unknown implementation 'fastest'"),
        ({"memory_limit": "2 apples"}, "'2 apples' is no size: write 40GiB"),
        ({"memory_limit": "1MiB"}, "a memory limit of 1MiB is below 256 MiB: no model fits"),
        ({"cell_timeout": "none"}, "--cell-timeout must be a time here"),
        ({"resume": True, "out": None}, "--resume needs --out"),
        ({"seed": -1}, "--seed must be between"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
    ],
    ids=str,
)
def test_bad_options_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], message: str
) -> None:
    with pytest.raises(SpecError) as refusal:
        run_command(tmp_path / "results/x", monkeypatch, **options)
    assert message in str(refusal.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "holds a run already: add --resume"),
        ({"resume": True, "memory_limit": "4GiB"}, "another memory limit"),
        ({"resume": True, "step": 128}, "another grid or timeout"),
        ({"resume": True, "cell_timeout": "5m"}, "another grid or timeout"),
        ({"resume": True, "seed": 1}, "another seed"),
    ],
    ids=str,
)
def test_another_search_is_not_mixed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], message: str
) -> None:
    folder = tmp_path / "results/x"
    run_command(folder, monkeypatch, "fits=700", memory_limit="2GiB")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(SpecError) as refusal:
        run_command(folder, monkeypatch, "fits=700", **options)
    assert message in str(refusal.value)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_without_a_limit_a_processor_keeps_to_a_share_of_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_command(tmp_path / "results/x", monkeypatch, "fits=700")
    assert load(tmp_path / "results/x").manifest.settings.memory_limit_bytes == round(0.6 * 2**40)


def test_a_search_is_neither_resumed_as_a_sweep_nor_audited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "results/x"
    run_command(folder, monkeypatch, "fits=700")
    with pytest.raises(SpecError, match="holds a search of maxres, no sweep"):
        sweep(SweepRequest(out=folder, resume=True, device="cpu"), Console(file=io.StringIO()))
    with pytest.raises(SpecError, match="holds a search of maxres, which measures nothing"):
        audit(folder, False, Console(file=io.StringIO()))


def test_a_sweep_is_not_resumed_as_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "results/x"
    with RunWriter(folder, sample_records.make_manifest()):
        pass
    with pytest.raises(SpecError, match="holds a sweep, no search"):
        run_command(folder, monkeypatch, resume=True)


@pytest.mark.parametrize("mechanism", ["softmax", "infsa-linear"])
def test_the_predicted_limit_is_the_last_that_fits(mechanism: str) -> None:
    model = make_case(mechanism=mechanism)
    grid = range(64, 4097, 64)

    def needed(resolution: int) -> int:
        cost = vit_cost(mechanism, "4L-64H", resolution)
        return cost.model_bytes + cost.peak_activation_bytes + 2 * 3 * 4 * resolution**2

    for limit_bytes in (2**30, 2**31, needed(1024)):
        predicted = predict_limit(model, grid, limit_bytes)
        assert predicted is not None
        assert needed(predicted) <= limit_bytes < needed(predicted + 64)
    assert predict_limit(model, grid, 1) == 64
    assert predict_limit(model, grid, 2**50) == 4096


def test_without_formulas_no_limit_is_predicted() -> None:
    model = make_case(mechanism="package.module:Class")
    assert predict_limit(model, range(64, 4097, 64), 2**31) is None


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("infsa_bench.commands.maxres.run_search", interrupt)
    words = ("maxres", "--mechanism", "softmax")
    code, printed = run_command(tmp_path / "results/x", monkeypatch, words=words)
    assert code == 130
    assert "To go on: infsa-bench maxres --mechanism softmax --resume" in printed


def test_an_unfinished_search_is_reported_as_one(tmp_path: Path) -> None:
    folder = tmp_path / "results/x"
    searched(folder, SEARCH, "fits=700", stop_after=1)
    printed, _, row = report(folder)
    assert (row["is_finished"], row["is_confirmed"]) == (False, False)
    assert "not finished" in printed


@pytest.mark.parametrize(
    ("behave", "limit", "kind", "fate"),
    [
        ("index", "index", "unsupported", "unsupported (index_limit) at build"),
        ("host_oom", "memory", "host_oom", "host_oom (allocation) at build"),
        ("oom", "memory", "oom", "oom at build"),
        ("sigsegv", "other", "crash", "crash at build"),
        ("sigkill", "other", "killed", "killed at build"),
        ("hang", "time", "timeout", "timeout at build"),
    ],
)
def test_what_limits_is_told(tmp_path: Path, behave: str, limit: str, kind: str, fate: str) -> None:
    folder = tmp_path / "results/x"
    search = dataclasses.replace(SEARCH, smallest=64, largest=128, timeout_seconds=1.0)
    made = searched(folder, search, f"at=128:{behave}")
    _, markdown, row = report(folder)
    assert (row["max_resolution"], row["smallest_failing_resolution"], row["limit"]) == (64, 128, limit)
    assert row["failure_kind"] == kind
    assert fate in markdown.replace("\\_", "_")
    assert {len(record.attempts) for record in made if record.case.resolution == 128} == {2 if kind == "killed" else 0}


def test_a_row_has_the_largest_peak_the_first_failure_and_all_the_time(tmp_path: Path) -> None:
    fits = [dataclasses.replace(FIT, peak_memory_bytes=size) for size in (100, 300, 200)]
    fails = [sample_records.make_failure(message=text) for text in ("first", "second", "third")]
    records = [
        dataclasses.replace(
            sample_records.make_record(outcome, mechanism="infsa-linear", resolution=side, replicate=i), seconds=2.0
        )
        for side, outcomes in ((64, fits), (128, fails))
        for i, outcome in enumerate(outcomes)
    ]
    search = dataclasses.replace(SEARCH, largest=128)
    (row,) = summarize_search(search, records)
    assert (row.peak_memory_bytes, row.probes, row.seconds) == (300, 6, 12.0)
    assert row.failure is not None
    assert row.failure.message == "first"
    assert row.result.is_confirmed


def test_a_worker_that_cannot_be_killed_ends_the_search_after_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(subprocess.Popen, "send_signal", lambda self, number: pids.append(self.pid))
        patch.setattr(process, "TERMINATE_SECONDS", 0.1)
        patch.setattr(process, "UNRESPONSIVE_SECONDS", 0.1)
        search = dataclasses.replace(SEARCH, timeout_seconds=0.5)
        with pytest.raises(SweepStoppedError, match="its device no longer answers"):
            searched(tmp_path / "results/x", search, *(f"at={side}:hang" for side in range(64, 2049, 64)))
    os.kill(pids[0], signal.SIGKILL)
    (record,) = load(tmp_path / "results/x").records
    assert isinstance(record.outcome, Failure)
    assert record.outcome.kind == "timeout"


def test_probes_beside_another_sweep_are_flagged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, as the fake worker has one; who did not ask to share is refused."""
    monkeypatch.setattr(device_lock, "LOCKS", tmp_path)
    gpu = dataclasses.replace(ENVIRONMENT, device="cuda:0")
    options = {"device": "cuda:0", "max_res": 256}
    with DeviceLock(gpu, allow_shared=False):
        with pytest.raises(SpecError, match="another sweep runs on cuda:0"):
            run_command(tmp_path / "results/x", monkeypatch, **options)
        code, printed = run_command(tmp_path / "results/x", monkeypatch, allow_shared=True, **options)
    assert code == 0
    records = load(tmp_path / "results/x").records
    assert {record.outcome.flags for record in records} == {("shared",)}
    assert f"shared: another sweep may have held memory in {len(records)} of {len(records)} probes" in " ".join(
        printed.split()
    )
    code, _ = run_command(tmp_path / "results/y", monkeypatch, **options)
    assert {record.outcome.flags for record in load(tmp_path / "results/y").records} == {()}


def test_a_model_that_cannot_run_by_design_is_probed_once(tmp_path: Path) -> None:
    folder = tmp_path / "results/x"
    at_every_size = [f"at={side}:unsupported" for side in range(64, 2049, 64)]
    assert len(searched(folder, SEARCH, *at_every_size)) == 1
    assert searched(folder, SEARCH, *at_every_size) == []
    printed, _, row = report(folder)
    assert row["is_by_design"]
    assert "cannot run: by design" in printed


def test_a_torn_line_is_said_to_be_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "results/x"
    run_command(folder, monkeypatch, "fits=700")
    file = folder / RECORDS
    file.write_bytes(file.read_bytes()[:-20])
    _, printed = run_command(folder, monkeypatch, "fits=700", resume=True)
    assert "dropped a torn last line" in printed
