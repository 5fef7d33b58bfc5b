"""Runs from elsewhere: mutated files are read or refused in one line, soon, and nothing outside their folder is."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_worker import FIT
from rich.console import Console
from sample_records import (
    CALIBRATION,
    ENVIRONMENT,
    GPU,
    GPU_STATE,
    make_case,
    make_energy,
    make_failure,
    make_manifest,
    make_measurement,
    make_no_energy,
    make_record,
    make_run,
)

from infsa_bench import machine, record, spec, store
from infsa_bench.analyze.max_resolution import summarize_search
from infsa_bench.analyze.run import summarized
from infsa_bench.analyze.summary import summarize
from infsa_bench.codec import decode, encode
from infsa_bench.commands.report import report_run
from infsa_bench.errors import InfsaBenchError, SchemaError, SpecError
from infsa_bench.record import Attempt
from infsa_bench.report.describe import flag_remarks
from infsa_bench.report.figures import draw_figures, write_figures
from infsa_bench.report.max_resolution import (
    describe_search,
    render_search_csv,
    render_search_markdown,
    render_search_terminal,
)
from infsa_bench.report.table import blocks, render_csv, render_markdown, render_terminal
from infsa_bench.search_plan import Search
from infsa_bench.store import LOCK, MANIFEST, RECORDS, StoredRun, load

LONGEST_MESSAGE = 3000
SECONDS = 1.0
GPU_ENVIRONMENT = dataclasses.replace(ENVIRONMENT, device="cuda:0", gpu=GPU)
RECORDS_OF_A_RUN = [
    make_record(make_measurement(energy=make_energy())),
    make_record(make_measurement(energy=make_energy(doubts=("shared",)), state_before=GPU_STATE), replicate=1),
    make_record(make_measurement([0.01 + 0.0001 * i for i in range(40)], gpu_seconds=(0.5,)), replicate=2),
    make_record(make_measurement(energy=make_no_energy(), flags=("non_finite_output",)), resolution=512),
    make_record(make_measurement(launch_bound=True), mechanism="some.package:Mixer", environment=GPU_ENVIRONMENT.key),
    make_record(make_failure(requested_bytes=2**30, predicted_seconds=1.5), options=(("rho", "0.5"),)),
    dataclasses.replace(
        make_record(make_failure("killed"), resolution=768), attempts=(Attempt(stage="build", message="killed"),)
    ),
    make_record(make_failure("timeout"), resolution=768),
]
PLAN = dataclasses.replace(
    make_manifest([record.case.id for record in RECORDS_OF_A_RUN]),
    environments={ENVIRONMENT.key: ENVIRONMENT, GPU_ENVIRONMENT.key: GPU_ENVIRONMENT},
    calibrations=(CALIBRATION,),
)

Content = dict[str, bytes]
"""The files of a run by name."""

VALID: Content = {
    MANIFEST: (encode(PLAN, indent=1) + "\n").encode(),
    RECORDS: "".join(encode(record) + "\n" for record in RECORDS_OF_A_RUN).encode(),
}

SEARCH = Search(
    models=(make_case(resolution=64), make_case(mechanism="some.package:Mixer", resolution=64)),
    smallest=64,
    largest=1024,
    step=64,
    timeout_seconds=60.0,
    available_bytes=2**30,
)
PROBES = [
    make_record(FIT, resolution=320),
    make_record(make_failure("host_oom", cause="allocation", stage="forward"), resolution=448),
    make_record(FIT, resolution=384),
    make_record(make_failure("host_oom"), resolution=384, replicate=1),
    make_record(make_failure("timeout"), mechanism="some.package:Mixer", resolution=64),
]
SEARCHED: Content = {
    MANIFEST: (encode(dataclasses.replace(PLAN, plan=(), search=SEARCH), indent=1) + "\n").encode(),
    RECORDS: "".join(encode(record) + "\n" for record in PROBES).encode(),
}
"""A run of ``maxres``."""

PATHS = (
    "/etc/passwd",
    "../../../../etc/passwd",
    "os:system",
    "../../x",
    "file:///etc/shadow",
    "~/.ssh/id_rsa",
    "C:\\x",
)
TEXTS = (
    *PATHS,
    "",
    "\x1b[2J\x1b]0;x\x07",
    "a\nb",
    "\u202e",
    "\ud800",
    "\x00",
    "a" * 100_000,
    "{0.__class__}",
    "%s%n",
    "=1+1",
)
NUMBERS = (0, -1, 1, 2**31, 2**62, 2**63 - 1, -(2**63), 10**400, 0.0, -0.0, 1e-320, 1e-50, 1e50, 1e300, -1.5, 0.5, 1e3)
HOSTILE: tuple[Any, ...] = (
    *TEXTS,
    *NUMBERS,
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    {"a": 1},
    ["x"] * 1000,
    [1e50, 1e-50],
)
RAW = (
    "NaN",
    "-Infinity",
    "1e999",
    "9" * 5000,
    "[" * 100_000,
    '{"a":' * 50_000,
    "[" * 600 + "]" * 600,
    "1.0.0",
    "01",
    "nul",
)
BYTES = (
    b"\x00",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\r\n",
    b"\n\n",
    b"\xc0\xaf",
    b"\x80\x04\x95",
    b'"',
    b"}",
    b"\\",
)


def nodes(value: Any) -> list[tuple[Any, Any]]:
    """Every place inside ``value``: the object or array, and the name or number in it."""
    places: list[tuple[Any, Any]] = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        places += [(value, key), *nodes(item)]
    return places


def swap_value(raw: Any, chance: random.Random) -> None:
    holder, key = chance.choice(nodes(raw))
    holder[key] = chance.choice(HOSTILE)


def swap_leaf(raw: Any, chance: random.Random) -> None:
    """Another value of the same kind: most of these are let in."""
    holder, key = chance.choice([(a, b) for a, b in nodes(raw) if not isinstance(a[b], dict | list)])
    old = holder[key]
    if isinstance(old, str):
        holder[key] = chance.choice(TEXTS)
    elif isinstance(old, bool):
        holder[key] = not old
    else:
        holder[key] = chance.choice([number for number in NUMBERS if type(number) is type(old)] or HOSTILE)


def delete(raw: Any, chance: random.Random) -> None:
    holder, key = chance.choice(nodes(raw))
    del holder[key]


def add(raw: Any, chance: random.Random) -> None:
    holder, key = chance.choice(nodes(raw))
    if isinstance(holder, dict):
        holder[chance.choice(TEXTS)] = chance.choice(HOSTILE)
    else:
        holder.insert(key, chance.choice(HOSTILE))


def rename(raw: Any, chance: random.Random) -> None:
    holder, key = chance.choice([place for place in nodes(raw) if isinstance(place[0], dict)])
    holder[chance.choice([*TEXTS, key.upper(), key + "s"])] = holder.pop(key)


def copy_value(raw: Any, chance: random.Random) -> None:
    (holder, key), (other, name) = chance.choice(nodes(raw)), chance.choice(nodes(raw))
    holder[key] = json.loads(json.dumps(other[name]))


def nest(raw: Any, chance: random.Random) -> None:
    holder, key = chance.choice(nodes(raw))
    for _ in range(chance.choice([1, 2, 50, 300])):
        holder[key] = [holder[key]] if chance.random() < 0.5 else {"a": holder[key]}


TREE_CHANGES = (swap_value, *[swap_leaf] * 8, delete, add, rename, copy_value, nest)


def change_tree(text: bytes, chance: random.Random) -> bytes:
    try:
        raw = json.loads(text)
        chance.choice(TREE_CHANGES)(raw, chance)
        return json.dumps(raw).encode()
    except (ValueError, RecursionError, IndexError):
        return change_bytes(text, chance)


def change_text(text: bytes, chance: random.Random) -> bytes:
    """Put raw JSON, or half of it, where a value stands, or a name twice."""
    colons = [i for i, letter in enumerate(text) if letter == ord(":")] or [0]
    at = chance.choice(colons)
    if chance.random() < 0.3:
        begin = text.rfind(b'"', 0, max(0, at - 1))
        return text[:begin] + text[begin : at + 1] + b"0," + text[begin:]
    end = next((i for i in range(at, len(text)) if text[i] in b",}]"), len(text))
    return text[: at + 1] + chance.choice(RAW).encode() + text[end:]


def change_bytes(text: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(text) + 1)
    until = min(len(text), at + chance.randint(0, 60))
    match chance.randrange(5):
        case 0 if at < len(text):
            return text[:at] + bytes([text[at] ^ 1 << chance.randrange(8)]) + text[at + 1 :]
        case 1:
            return text[:at]
        case 2:
            return text[:at] + text[until:]
        case 3:
            source = chance.randrange(len(text) + 1)
            return text[:at] + text[source : source + 60] + text[at:]
        case _:
            return text[:at] + chance.choice(BYTES) + text[at:]


def change_lines(text: bytes, chance: random.Random) -> bytes:
    lines = text.splitlines(keepends=True) or [b""]
    match chance.randrange(6):
        case 0:
            lines.insert(chance.randrange(len(lines) + 1), chance.choice(lines))
        case 1:
            chance.shuffle(lines)
        case 2:
            del lines[chance.randrange(len(lines))]
        case 3:
            lines.insert(chance.randrange(len(lines) + 1), b"\n")
        case 4:
            index = chance.randrange(len(lines))
            lines[index] = lines[index].replace(b"\n", chance.choice([b"", b"\r\n", b"\r"]))
        case _:
            lines *= 2 if len(lines) > 100 else 20
    return b"".join(lines)


def mutate(chance: random.Random) -> Content:
    """Return a run with one to three changes."""
    content = dict(chance.choice([VALID, VALID, SEARCHED]))
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        name = RECORDS if chance.random() < 0.75 else MANIFEST
        change = chance.choice([change_tree, change_tree, change_tree, change_text, change_bytes, change_lines])
        if name == RECORDS and change in (change_tree, change_text):
            lines = content[name].splitlines() or [b""]
            index = chance.randrange(len(lines))
            lines[index] = change(lines[index], chance)
            content[name] = b"".join(line + b"\n" for line in lines)
        else:
            content[name] = change(content[name], chance)
    return content


def put_another_kind(path: Path, chance: random.Random, secret: Path) -> None:
    """Put what is no regular file in the place of one, or take the file away."""
    file = path / chance.choice([MANIFEST, RECORDS, LOCK])
    file.unlink(missing_ok=True)
    kinds: Sequence[Callable[[], object]] = (
        lambda: file.symlink_to(secret),
        lambda: file.symlink_to("/dev/zero"),
        lambda: file.symlink_to(file.name),
        lambda: os.mkfifo(file),
        file.mkdir,
        lambda: None,
    )
    chance.choice(kinds)()


class Watch:
    """Says what the interpreter does while it is on: a hook, once added, cannot be removed."""

    def __init__(self) -> None:
        self.is_on = False
        self.allowed: tuple[Path, ...] = ()
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on:
            return
        if event in ("open", "os.listdir", "os.scandir"):
            # Numbers are descriptors that were opened before.
            if isinstance(arguments[0], int):
                return
            path = Path(os.path.realpath(os.fsdecode(arguments[0])))
            if any(path.is_relative_to(folder) for folder in self.allowed):
                return
        elif event.partition(".")[0] not in (
            "import",
            "exec",
            "compile",
            "os",
            "subprocess",
            "socket",
            "pickle",
            "ctypes",
        ):
            return
        self.seen.append(f"{event} {arguments!r:.200}")

    @contextmanager
    def on(self, *allowed: Path) -> Iterator[None]:
        self.allowed = tuple(Path(os.path.realpath(folder)) for folder in allowed)
        self.seen.clear()
        self.is_on = True
        try:
            yield
        finally:
            self.is_on = False


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@contextmanager
def soon() -> Iterator[None]:
    """Fail what takes too long, and break off what would never end."""

    def hang(number: int, frame: object) -> None:
        pytest.fail("hangs")

    previous = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, 20)
    started = time.process_time()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert time.process_time() - started < SECONDS


def check_message(error: InfsaBenchError) -> None:
    text = str(error)
    assert text.isprintable(), text
    assert 0 < len(text) < LONGEST_MESSAGE, text


def write(path: Path, content: Content) -> None:
    for name, text in content.items():
        (path / name).write_bytes(text)


def rendered(run: StoredRun) -> str:
    """Everything that is reported of a run but its figures."""
    output = io.StringIO()
    console = Console(file=output, width=80, color_system=None)
    if run.manifest.search is not None:
        try:
            found = summarize_search(run.manifest.search, run.records)
        except SpecError as error:
            # Of another grid than the probes.
            check_message(error)
            return str(error)
        console.print(render_search_terminal(run.name, found))
        markdown = render_search_markdown(run, found)
        return "\n".join([output.getvalue(), markdown, render_search_csv(found, 2**30), *describe_search(run)])
    rows = summarize(run.records)
    for title, block in blocks(rows):
        console.print(render_terminal(title, block))
    return "\n".join([output.getvalue(), *flag_remarks(rows), render_markdown(run, rows), render_csv(rows)])


# What is installed is looked up for names that are not built in, whatever they are.
INSTALLED = tuple(Path(entry) for entry in sys.path if entry)


def fuzz(path: Path, watch: Watch, seed: int, count: int, reports: int) -> tuple[int, int]:
    """Load ``count`` mutated runs, report up to ``reports`` of them; return how many were loaded and reported."""
    secret = path / "secret.json"
    secret.write_bytes(VALID[MANIFEST])
    run_path = path / "runs" / "run"
    loaded = reported = 0
    run_path.mkdir(parents=True)
    write(run_path, VALID)
    for content in (SEARCHED, VALID):
        write(run_path, content)
        # Imports what is imported late.
        rendered(load(run_path))
    # The types of fields are read where one of their class is first decoded, also those that no valid run here has.
    for kind in [value for module in (machine, record, spec, store) for value in vars(module).values()]:
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            with contextlib.suppress(SchemaError):
                decode(kind, b"{}")
    for index in range(count):
        chance = random.Random(f"{seed} {index}")
        shutil.rmtree(run_path)
        run_path.mkdir()
        content = mutate(chance)
        write(run_path, content)
        if chance.random() < 0.03:
            put_another_kind(run_path, chance, secret)
        try:
            with watch.on(run_path), soon():
                run = load(run_path)
        except (SchemaError, SpecError) as error:
            run = None
            check_message(error)
            assert isinstance(error, SchemaError) or not (run_path / MANIFEST).exists()
        assert watch.seen == [], (seed, index)
        if run is None:
            continue
        loaded += 1
        if reported < reports:
            reported += 1
            with watch.on(run_path, *INSTALLED), soon():
                text = rendered(run)
            assert watch.seen == [], (seed, index)
            assert all(line.isprintable() for line in text.split("\n")), (seed, index)
    return loaded, reported


def test_the_valid_run_is_loaded_and_reported(tmp_path: Path) -> None:
    write(tmp_path, VALID)
    run = load(tmp_path)
    assert len(run.records) == 7
    assert run.superseded == 1
    assert "some.package:Mixer" in rendered(run)
    write(tmp_path, SEARCHED)
    run = load(tmp_path)
    assert len(run.records) == 5
    assert "some.package:Mixer" in rendered(run)


def test_mutated_runs_are_read_or_refused(tmp_path: Path, watch: Watch) -> None:
    loaded, reported = fuzz(tmp_path, watch, seed=0, count=300, reports=20)
    assert 30 < loaded < 200
    assert reported == 20


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1, 11))
def test_ten_thousand_mutated_runs_are_read_or_refused(tmp_path: Path, watch: Watch, seed: int) -> None:
    loaded, reported = fuzz(tmp_path, watch, seed=seed, count=1000, reports=50)
    assert 100 < loaded < 700
    assert reported == 50


HOSTILE_MECHANISMS = [
    "os:system",
    "antigravity:Geohash",
    "planted:Module",
    "../../x",
    "/etc/passwd",
    "planted",
    "__import__('os').system('true'):x",
    "a" * 100_000,
    "\x1b[2J",
    "caf\udce9",
    "$\\input{x}$ {0.__class__} %s",
    "_hidden",
]


def test_hostile_names_of_mechanisms_end_as_text(tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures included: nothing is imported, run, or read but the run and what is installed here."""
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "planted.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(packages)
    run_path, reports = tmp_path / "results" / "run", tmp_path / "reports"
    run_path.mkdir(parents=True)
    write(run_path, VALID)
    report_run(run_path, Console(file=io.StringIO(), width=80))  # imports what is imported late
    shutil.rmtree(reports)
    records = [
        make_record(make_measurement(energy=make_energy()), mechanism=name, implementation=name, config=name)
        for name in HOSTILE_MECHANISMS
    ]
    plan = make_manifest([record.case.id for record in records] + list(PATHS))
    lines = "".join(encode(record) + "\n" for record in records)
    write(run_path, {MANIFEST: encode(plan).encode(), RECORDS: lines.encode()})
    modules = set(sys.modules)
    output = io.StringIO()
    with watch.on(run_path, reports, *INSTALLED), monkeypatch.context() as patch:
        # Figures of 12 blocks would take their time: they are made, but not drawn.
        for canvas in ("agg.FigureCanvasAgg.print_png", "svg.FigureCanvasSVG.print_svg"):
            patch.setattr(f"matplotlib.backends.backend_{canvas}", lambda canvas, file, **settings: None)
        markdown, table, *_ = report_run(run_path, Console(file=output, width=80, color_system=None))
    # The names of what is installed are listed, whatever the mechanism is called.
    own = ("os.mkdir", f"os.remove ('{reports}/run/")
    expected = {f"os.listdir ('{packages}',)", *(event for event in watch.seen if event.startswith(own))}
    assert set(watch.seen) <= expected
    assert set(sys.modules) == modules
    text = markdown.read_text() + table.read_text()
    assert text.count("os:system") > 2
    assert all(line.isprintable() for line in text.split("\n"))
    assert sorted(item.name for item in tmp_path.iterdir()) == ["packages", "reports", "results"]


@pytest.mark.soak
@pytest.mark.parametrize("mechanism", [name for name in HOSTILE_MECHANISMS if len(name) < 100])
def test_hostile_names_are_drawn(tmp_path: Path, mechanism: str) -> None:
    records = [
        make_record(make_measurement(), mechanism=mechanism, implementation=mechanism, options=((mechanism, "1"),)),
        make_record(make_failure(), mechanism=mechanism, config=mechanism, resolution=2**62),
    ]
    for file in write_figures(draw_figures(summarized(make_run(records))), tmp_path):
        assert file.stat().st_size > 1000
