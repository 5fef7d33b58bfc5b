"""Which sweeps measure given cells, and that another build runs them."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path

import pytest
from rich.console import Console
from sample_records import SETTINGS, make_case

from infsa_bench.commands.measuring import Build, build_called, measure, protocol_words, sweep_words
from infsa_bench.commands.options import SweepRequest, check_options, sweep_axes
from infsa_bench.errors import SpecError, SweepStoppedError
from infsa_bench.protocol import PROTOCOLS, Protocol
from infsa_bench.spec import Case

FAKE_BUILD = Path(__file__).parent / "fake_build.py"


def fake_build(name: str = "new", **environment: str) -> Build:
    return Build(name=name, command=(sys.executable, str(FAKE_BUILD)), environment=environment)


def planned(words: list[str]) -> list[Case]:
    """The cells that a sweep with these options has."""
    pairs = dict(zip(words[::2], words[1::2], strict=False))
    names = {"--mechanisms": "mechanisms", "--impl": "impl", "--config": "config", "--res": "res"}
    names |= {"--batch-size": "batch_size", "--dtype": "dtype", "--phase": "phase", "--execution": "execution"}
    options = tuple(words[index + 1] for index, word in enumerate(words) if word == "--option")
    request = SweepRequest(option=options, **{name: pairs[word] for word, name in names.items()})
    check_options(request)
    return list(sweep_axes(request, "cpu", 1).cases("cpu"))


CASES = [
    make_case(),
    make_case(resolution=512),
    make_case(mechanism="mlla"),
    make_case(mechanism="mlla", resolution=512),
    make_case(mechanism="soft"),
    make_case(implementation="fast", options=(("backend", "math"), ("cls_prune", "1"))),
    make_case(mechanism="mlla", phase="train", precision="amp-bf16", batch_size=8, config="24L-16H"),
    make_case(mechanism="a.b:C", execution="compile"),
]


def test_sweeps_cover_exactly_the_cells() -> None:
    sweeps = sweep_words(CASES, SETTINGS)
    assert sorted(case.cell for words in sweeps for case in planned(words)) == sorted(case.cell for case in CASES)
    assert len(sweeps) == 5


def test_settings_are_asked_for_as_they_were() -> None:
    settings = dataclasses.replace(SETTINGS, seed=7, memory_limit_bytes=2**31, energy="none")
    (words,) = sweep_words([make_case()], settings)
    line = shlex.join(words)
    for part in ("--seed 7", "--memory-limit 2147483648", "--energy none", "--device cpu", "--time-budget none"):
        assert part in line


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_can_be_asked_for(name: str) -> None:
    assert protocol_words(PROTOCOLS[name])[:2] == ["--protocol", name]
    exact = PROTOCOLS[name].customized(warmup=2, iterations=5, replicates=7)
    assert protocol_words(exact) == ["--protocol", name, "--warmup", "2", "--iterations", "5"]


def test_a_protocol_from_elsewhere_is_refused() -> None:
    for protocol in (Protocol(name="mine"), dataclasses.replace(PROTOCOLS["quick"], timed_seconds=9.0)):
        with pytest.raises(SpecError, match="protocol"):
            protocol_words(protocol)


@pytest.mark.parametrize("command", ["", "  ", "'open"])
def test_commands_that_are_none(command: str) -> None:
    with pytest.raises(SpecError, match="--base-cmd"):
        build_called(command)


def test_what_goes_wrong_is_told_with_its_log(tmp_path: Path) -> None:
    console = Console(quiet=True)
    for words, kind, expected in (
        (("/does/not/exist",), SpecError, "cannot be run"),
        ((sys.executable, "-c", "print('no such option'); raise SystemExit(2)"), SpecError, "no such option"),
        ((sys.executable, "-c", "raise SystemExit(5)"), SweepStoppedError, "exit 5"),
    ):
        with pytest.raises(kind, match=expected):
            measure(Build(name="base", command=words), [make_case()], SETTINGS, 1, tmp_path / "run", console)
    assert "$ /does/not/exist sweep" in (tmp_path / "run.log").read_text()


def test_no_time_goes_into_reports(tmp_path: Path) -> None:
    """Of a build that can do without; one that cannot is not asked to."""
    out = tmp_path / "run"
    console = Console(quiet=True)
    assert measure(fake_build(), [make_case()], SETTINGS, 1, out, console) == [make_case()]
    assert (out / "records.jsonl").is_file()
    assert not (out / "report").exists()
    assert "--no-report" in (tmp_path / "run.log").read_text()
    script = tmp_path / "older.py"
    script.write_text("import sys\nif '--help' not in sys.argv: assert '--no-report' not in sys.argv\n")
    older = Build(name="base", command=(sys.executable, str(script)))
    measure(older, [make_case()], SETTINGS, 1, tmp_path / "old", console)
    assert "--no-report" not in (tmp_path / "old.log").read_text()
