"""A sweep on a real Ray cluster: nodes on this machine with accelerator types that are made up, and real workers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_worker import CALIBRATION, CALIBRATION_LATER, TRACE
from sample_records import make_case
from test_cli import CommandLine, run
from test_sweep import fake_launcher

from infsa_bench.analyze.frame import to_frame
from infsa_bench.analyze.run import Run, load_run
from infsa_bench.energy_plan import ENERGY_PRESETS
from infsa_bench.errors import SpecError
from infsa_bench.execute import device_lock, ray_engine
from infsa_bench.execute.device_lock import DeviceLock
from infsa_bench.execute.engines import Ended, Task
from infsa_bench.execute.launcher import Patience
from infsa_bench.execute.ray_cluster import Cluster, accelerator_types, nodes_with
from infsa_bench.execute.ray_engine import RayEngine
from infsa_bench.execute.ray_station import RayStation
from infsa_bench.execute.station import Station
from infsa_bench.protocol import PROTOCOLS
from infsa_bench.record import Measurement
from infsa_bench.store import RECORDS, load, load_manifest

__all__ = ["run"]

MARK = "INFSA_TEST_CLUSTER"
LOCKS = "INFSA_TEST_LOCKS"
COMMAND = [sys.executable, "-m", "infsa_bench"]
PLAIN = ["--warmup", "1", "--iterations", "1", "--energy", "none", "--no-peaks", "--time-budget", "none"]
FORTY = ["--mechanisms", "softmax,linformer,flatten,infsa-linear", "--res", "32,48,64,80,96"]
FEW = ["--mechanisms", "softmax,infsa-linear", "--res", "32,48"]

TIMINGS = re.compile(
    r"seconds|speedup|_per_second|lag1_autocorrelation|effective_samples|timed_iterations|_fraction|environment|flags|_bytes"
)
"""Columns that differ from run to run, those of memory aside."""


class FakeStation(RayStation):
    """An actor with a worker without torch, on the GPU that Ray gave it: there need not be one."""

    def _ready_station(self) -> Station:
        if self._station is None:
            # Locks of its own, as the GPU of that name is another for whoever else tests here.
            device_lock.LOCKS = Path(os.environ[LOCKS])
            device = f"cuda:{os.environ['CUDA_VISIBLE_DEVICES']}"
            self._station = Station(device, fake_launcher("meter"), allow_shared=self._place.allow_shared)
        return self._station


class Machines:
    """A cluster whose nodes come and go."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        size = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **size})
        self.address: str = self._cluster.address
        self._nodes: list[tuple[str, Any]] = []

    def want(self, **counts: int) -> None:
        """Have at least so many nodes of each accelerator type."""
        for accelerator, count in counts.items():
            for _ in range(count - sum(name == accelerator for name, _ in self._nodes)):
                resources = {f"accelerator_type:{accelerator}": 1}
                node = self._cluster.add_node(num_cpus=1, resources=resources, object_store_memory=80 * 2**20)
                self._nodes.append((accelerator, node))

    @contextlib.contextmanager
    def with_gpus(self, count: int) -> Iterator[None]:
        """Have a node with so many GPUs meanwhile, which Ray takes our word for."""
        size = {"num_cpus": 2 * count, "num_gpus": count, "object_store_memory": 80 * 2**20}
        node = self._cluster.add_node(**size)
        yield
        self._cluster.remove_node(node)

    def kill(self, accelerator: str) -> None:
        """Kill a node of that type, as a power cut would."""
        index = [name for name, _ in self._nodes].index(accelerator)
        self._cluster.remove_node(self._nodes.pop(index)[1], allow_graceful=False)

    def kill_head(self) -> None:
        """Kill what holds the cluster together, with its machine."""
        self._cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)

    def shutdown(self) -> None:
        self._cluster.shutdown()

    def sweep(self, *words: str) -> list[str]:
        return [*COMMAND, "sweep", *PLAIN, "--engine", "ray", "--ray-address", self.address, "--device", "cpu", *words]


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    if os.environ.get("CI") != "true":
        pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        # Of the actors that tests have in place of real ones.
        folders = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        patch.setenv("PYTHONPATH", os.pathsep.join(folders))
        # What runs on the nodes inherits it.
        patch.setenv(MARK, uuid.uuid4().hex)
        patch.setenv(LOCKS, str(tmp_path_factory.mktemp("locks")))
        found = Machines()
        yield found
        found.shutdown()


def processes(word: str) -> list[int]:
    """Return the processes of the cluster that have a word in their command lines."""
    mark = f"{MARK}={os.environ[MARK]}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = ((folder / name).read_bytes() for name in ("cmdline", "environ"))
        except OSError:
            continue
        if word.encode() in command and mark in environment.split(b"\0"):
            found.append(int(folder.name))
    return found


def wait_for_records(folder: Path, count: int, process: subprocess.Popen[str], seconds: float = 240.0) -> None:
    end = time.monotonic() + seconds
    file = folder / RECORDS
    while not file.exists() or file.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def steady(run: Run) -> list[dict[str, Any]]:
    """Return what a run's table says that is no timing and nothing that follows from one, sorted by cell."""
    frame = to_frame(run.rows)
    kept = frame[[name for name in frame.columns if not TIMINGS.search(name) or name == "model_bytes"]]
    rows: list[dict[str, Any]] = json.loads(kept.to_json(orient="records"))
    return sorted(rows, key=str)


def test_a_killed_node_costs_no_cell_and_the_table_is_that_of_a_local_run(machines: Machines, tmp_path: Path) -> None:
    machines.want(A100=3)
    sweep = subprocess.Popen(
        machines.sweep(*FORTY, "--out", "results/cluster", "--no-report"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_records(tmp_path / "results/cluster", 12, sweep)
    machines.kill("A100")
    out, err = sweep.communicate(timeout=400)
    assert sweep.returncode == 0, err
    assert "places: 3 processors of 3 nodes; each worker has 1 thread" in out
    assert "[40/40] " in out
    local = ["sweep", *PLAIN, *FORTY, "--device", "cpu", "--out", "results/local", "--no-report"]
    subprocess.run([*COMMAND, *local], cwd=tmp_path, check=True, capture_output=True)

    stored = load(tmp_path / "results/cluster")
    lines = (tmp_path / "results/cluster" / RECORDS).read_text().splitlines()
    assert len(lines) == len(stored.records) == len(stored.manifest.plan) == 40
    assert [record.case.id for record in stored.records] == list(stored.manifest.plan)
    assert all(isinstance(record.outcome, Measurement) for record in stored.records)
    # What was under way on the node has one try more than the others, elsewhere.
    lost = [record for record in stored.records if record.attempts]
    environments = stored.manifest.environments
    assert 1 <= len(lost) <= 2
    for record in lost:
        (attempt,) = record.attempts
        where = environments[record.environment].node
        assert re.match(r"lost on \S+: \S+: \w+Error: ", attempt.message)
        assert where is not None
        assert not attempt.message.startswith(f"lost on {where}:")
    assert len({environments[record.environment].node for record in stored.records}) == 3
    assert {found.accelerator for found in environments.values()} == {"A100"}

    cluster, alone = load_run(tmp_path / "results/cluster"), load_run(tmp_path / "results/local")
    assert len(cluster.rows) == 40
    assert len({row.environment for row in cluster.rows}) == 1
    assert steady(cluster) == steady(alone)
    assert {"mechanism", "status", "parameters", "matmul_flops", "model_bytes", "energy_reason"} <= set(
        steady(cluster)[0]
    )
    sizes = [{row.case: row.peak_memory_bytes for row in found.rows} for found in (cluster, alone)]
    for case, size in sizes[0].items():
        assert size is not None
        # Resident memory of a process, in which chance has a share.
        assert size == pytest.approx(sizes[1][case], rel=0.5)


def test_unlike_accelerators_are_refused_and_each_can_have_its_run(machines: Machines, tmp_path: Path) -> None:
    machines.want(A100=2, H100=1)
    refused = subprocess.run(
        machines.sweep(*FEW, "--out", "results/x"), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "the Ray cluster has several accelerator types (A100, H100), which are never mixed" in refused.stderr
    assert not (tmp_path / "results").exists()

    words = machines.sweep(*FEW, "--out", "results/fleet", "--per-accelerator", "--impl", "fast")
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "accelerator types: A100, H100" in done.stdout
    assert re.search(r"^H100: \[4/4\] ", done.stdout, re.MULTILINE)
    for name in ("A100", "H100"):
        stored = load(tmp_path / f"results/fleet-{name}")
        assert {found.accelerator for found in stored.manifest.environments.values()} == {name}
        assert len(stored.records) == 4
        assert all(isinstance(record.outcome, Measurement) for record in stored.records)
        assert f"accelerator type {name}" in (tmp_path / f"reports/fleet-{name}/table.md").read_text()
    one, other = (load_manifest(tmp_path / f"results/fleet-{name}") for name in ("A100", "H100"))
    assert one.plan == other.plan
    assert (tmp_path / "reports/fleet/index.html").exists()
    # Nothing is left to do, and that is found out for all of them.
    words += ["--resume", "--no-report"]
    again = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("4 of them recorded already") == 2


def test_an_interrupt_ends_the_workers_on_the_nodes_and_resuming_goes_on(machines: Machines, tmp_path: Path) -> None:
    machines.want(A100=2)
    words = machines.sweep(*FEW, "--accelerator", "A100", "--out", "results/x", "--no-report")
    first = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_records(tmp_path / "results/x", 1, first)
    assert processes("infsa_bench.execute.worker")
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=60)
    assert first.returncode == 130, err
    assert "interrupted; what is recorded is kept. To go on: " in out
    end = time.monotonic() + 10
    while processes("infsa_bench.execute.worker") and time.monotonic() < end:
        time.sleep(0.1)
    assert processes("infsa_bench.execute.worker") == []
    kept = (tmp_path / "results/x" / RECORDS).read_text().splitlines()
    again = subprocess.run([*words, "--resume"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    stored = load(tmp_path / "results/x")
    assert (tmp_path / "results/x" / RECORDS).read_text().splitlines()[: len(kept)] == kept
    assert (len(stored.records), stored.superseded) == (8, 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_fleet_that_is_ended_leaves_nothing_running(
    machines: Machines, tmp_path: Path, number: signal.Signals
) -> None:
    machines.want(A100=1, H100=1)
    words = machines.sweep(*FORTY, "--per-accelerator", "--out", "results/x", "--no-report")
    fleet = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for name in ("A100", "H100"):
        wait_for_records(tmp_path / f"results/x-{name}", 1, fleet)
    assert len(processes("--accelerator")) == 2
    fleet.send_signal(number)
    out, err = fleet.communicate(timeout=90)
    if number == signal.SIGTERM:
        assert fleet.returncode == 130, err
        assert out.count("interrupted; what is recorded is kept. To go on: ") == 3
        assert processes("--accelerator") == []
    end = time.monotonic() + 30
    while processes("--accelerator") + processes("infsa_bench.execute.worker") and time.monotonic() < end:
        time.sleep(0.1)
    assert processes("--accelerator") + processes("infsa_bench.execute.worker") == []


def test_without_its_head_a_cluster_is_not_waited_for(machines: Machines, tmp_path: Path) -> None:
    """Ray itself would end the process after a minute, and nobody would be told how to go on."""
    doomed = Machines()
    try:
        doomed.want(A100=1)
        words = doomed.sweep(*FORTY, "--iterations", "150", "--out", "results/x", "--no-report")
        sweep = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for_records(tmp_path / "results/x", 1, sweep)
        doomed.kill_head()
        killed = time.monotonic()
        out, err = sweep.communicate(timeout=120)
        seconds = time.monotonic() - killed
    finally:
        doomed.shutdown()
    assert sweep.returncode == 5, (out, err)
    assert "stopped early: the head of the Ray cluster is gone, no answer for 15 s; what is recorded is kept" in err
    assert "goes on with --resume" in err
    assert seconds < 55.0
    lines = (tmp_path / "results/x" / RECORDS).read_text().splitlines()
    stored = load(tmp_path / "results/x").records
    assert 1 <= len(lines) == len(stored) < 40
    assert all(isinstance(record.outcome, Measurement) for record in stored)


@pytest.mark.soak
def test_what_is_not_measured_works_there_too(machines: Machines, tmp_path: Path) -> None:
    """A dry run, a limit of memory, a budget that has room for nothing, a module that is none."""
    machines.want(H100=1)

    def sweep(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            machines.sweep("--mechanisms", "softmax", "--res", "32", "--accelerator", "H100", *words),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    code, out = sweep("--dry-run", "--time-budget", "60s")
    assert code == 0
    assert re.search(r"infsa/softmax.reference/4L-64H/r32/b1/fp32/infer/eager/p0: \S+ (s|ms)", out)
    assert "places: 1 processor of 1 node of accelerator type H100; each worker has 1 thread" in out
    assert not (tmp_path / "results").exists()
    code, out = sweep("--mechanisms", "no_such_module:Attention", "--dry-run")
    assert code == 2
    assert "no_such_module:Attention is no mechanism: ModuleNotFoundError" in out
    code, out = sweep("--memory-limit", "1GiB", "--time-budget", "15.5s", "--out", "results/late", "--no-report")
    assert code == 0, out
    assert "emulated" in out
    assert "skipped: predicted to take" in out


def test_the_commands_of_the_readme_plan(machines: Machines, tmp_path: Path) -> None:
    """On nodes without GPUs, which are asked for in their stead."""
    machines.want(A100=1, H100=1)
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^infsa-bench (.*--engine ray.*)$", text, re.MULTILINE)
    assert len(lines) >= 3
    for line in lines:
        words = [*COMMAND, *shlex.split(line), "--ray-address", machines.address, "--device", "cpu", "--dry-run"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("cells planned") == (2 if "--per-accelerator" in line else 1)
    assert not (tmp_path / "results").exists()


def test_a_lost_worker_process_is_lost_alone(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of an actor is killed; its node lives on, and the next task there has another."""
    machines.want(A100=1, H100=1)
    patience = Patience(timeout_seconds=100.0, silence_seconds=100.0)
    protocol = PROTOCOLS["quick"].customized(warmup=1, iterations=500, replicates=None)
    short = PROTOCOLS["quick"].customized(warmup=1, iterations=1, replicates=None)

    def task(which: Any) -> Task:
        case = make_case(resolution=32)
        return Task(case=case, protocol=which, patience=patience, limit_seconds=None, energy=None)

    with Cluster(machines.address) as cluster:
        assert accelerator_types(nodes_with(cluster, "auto")[1]) == ["A100", "H100"]
        with pytest.raises(SpecError, match=r"has a core of accelerator type H200 to lend; there are A100, H100$"):
            RayEngine(cluster, "cpu", "H200")
        with pytest.raises(SpecError, match="has a GPU of accelerator type H100 to lend"):
            RayEngine(cluster, "cuda", "H100")
        with RayEngine(cluster, "cpu", "H100") as engine:
            assert (engine.places, engine.devices, engine.is_shared()) == (1, "cpu", False)
            engine.start(task(protocol))
            assert not engine.has_room()
            time.sleep(2.0)
            (pid,) = [
                int(Path(f"/proc/{worker}/status").read_text().split("PPid:")[1].split()[0])
                for worker in processes("infsa_bench.execute.worker")
            ]
            os.kill(pid, signal.SIGKILL)
            lost = engine.wait()
            assert isinstance(lost, Ended)
            assert lost.run is None
            assert lost.lost is not None
            assert "ActorDiedError" in lost.lost
            assert lost.environment == engine.hello.environment
            # There is nowhere else: the place that should be avoided is better than none.
            assert engine.has_room(frozenset({lost.place}))
            engine.start(task(short))
            ended = engine.wait()
            assert ended.lost is None
            assert ended.run is not None
            assert isinstance(ended.run.outcome, Measurement)
            assert ended.environment.accelerator == "H100"
            assert engine.calibrate() == []


def test_every_gpu_of_a_node_runs_a_case_and_all_that_was_found_comes_back(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with a GPU that nobody else has, and that Ray gives to nobody else meanwhile."""
    monkeypatch.setattr(ray_engine, "RayStation", FakeStation)
    monkeypatch.setattr(device_lock, "LOCKS", Path(os.environ[LOCKS]))
    patience = Patience(timeout_seconds=100.0, silence_seconds=100.0)

    def task(number: int, **options: str) -> Task:
        return Task(
            case=make_case(options=(("n", str(number)), *options.items())),
            protocol=PROTOCOLS["quick"],
            patience=patience,
            limit_seconds=None,
            energy=ENERGY_PRESETS["quick"],
        )

    with (
        machines.with_gpus(2),
        Cluster(machines.address) as cluster,
        RayEngine(cluster, "cuda", None, allow_shared=True) as engine,
    ):
        assert (engine.places, engine.devices) == (2, "cuda")
        assert engine.describe_places().startswith("2 GPUs of 1 node; ")
        assert cluster.ray.available_resources().get("GPU", 0) == 0
        assert {hello.environment.device for hello in engine.hellos} == {"cuda:0", "cuda:1"}
        for number in range(2):
            assert engine.has_room()
            engine.start(task(number, behave="energy", sleep="0.3"))
        assert not engine.has_room()
        for ended in (engine.wait(), engine.wait()):
            assert ended.run is not None
            assert (ended.run.trace, ended.run.calibration) == (TRACE, CALIBRATION)
            assert isinstance(ended.run.outcome, Measurement)
            assert not ended.is_shared
        assert engine.calibrate() == [CALIBRATION_LATER] * 2
        assert not engine.is_shared()
        used = engine.hellos[1].environment
        with DeviceLock(used, allow_shared=True):
            assert engine.is_shared()
            for number in range(2):
                engine.start(task(number))
            shared = {ended.environment.device: ended.is_shared for ended in (engine.wait(), engine.wait())}
        assert shared == {"cuda:0": used.device == "cuda:0", "cuda:1": used.device == "cuda:1"}


def test_a_cluster_that_is_not_there(run: CommandLine) -> None:
    pytest.importorskip("ray")
    result = run("sweep", "--engine", "ray", "--ray-address", "127.0.0.1:1", "--device", "cpu")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "no Ray cluster at '127.0.0.1:1'" in result.err


def test_without_ray_it_says_what_to_install(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for extra in ([], ["--per-accelerator"]):
        result = run("sweep", "--engine", "ray", *extra)
        expected = (
            "infsa-bench: error: --engine ray needs Ray, which is not installed: pip install 'infsa-bench[ray]'\n"
        )
        assert (result.code, result.err) == (2, expected)
    assert not (run.folder / "results").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--engine", "slurm"], "unknown engine 'slurm'; known: local, ray"),
        (["--engine", "ray", "--device", "cuda:0"], "with --engine ray write auto, cpu or cuda"),
        (["--engine", "ray", "--device", "cuda:0,cuda:1"], "with --engine ray write auto, cpu or cuda"),
        (["--engine", "ray", "--accelerator", "A100", "--per-accelerator"], "one or all of them, not both"),
        (["--per-accelerator"], "--per-accelerator: only together with --engine ray"),
        (["--accelerator", "A100"], "--accelerator: only together with --engine ray"),
        (["--accelerator", ""], "--accelerator: only together with --engine ray"),
        (["--ray-address", ""], "--ray-address: only together with --engine ray"),
        (["--ray-address", "auto"], "--ray-address: only together with --engine ray"),
        (["--engine", "ray", "--accelerator", ""], "--accelerator is empty"),
        (["--engine", "ray", "--ray-address", ""], "--ray-address is empty"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together(run: CommandLine, words: list[str], expected: str) -> None:
    result = run("sweep", *words)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert expected in result.err


def test_a_program_that_wants_one_run_is_not_given_several() -> None:
    import infsa_bench

    with pytest.raises(SpecError, match="--per-accelerator makes several runs"):
        infsa_bench.run_sweep(engine="ray", per_accelerator=True)
