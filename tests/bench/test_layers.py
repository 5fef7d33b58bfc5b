"""``infsa-bench layers`` and ``make bench``: single layers, both implementations in turns."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fake_worker import ENVIRONMENT

from infsa_bench.cli import main
from infsa_bench.errors import SchemaError
from infsa_bench.layers import LAYERS, LayerRun, LayerTimes, load_layers, write_layers
from infsa_bench.report.layers import render_layers

TIMES = LayerTimes(
    mechanism="infsa-linear",
    options=(("tie_qk", "0"),),
    num_heads=64,
    tokens=4097,
    reference_seconds=(0.30, 0.33, 0.36),
    fast_seconds=(0.10, 0.11, 0.10),
    reference_peak_bytes=100 * 2**20,
    fast_peak_bytes=None,
)


def sample_run() -> LayerRun:
    return LayerRun(
        created_utc="2026-11-25T12:00:00+00:00",
        environment=ENVIRONMENT,
        embed_dim=1024,
        precision="fp32",
        rounds=3,
        layers=(TIMES,),
    )


def test_ratios() -> None:
    assert TIMES.speedup == pytest.approx(3.3)
    assert TIMES.speedups == pytest.approx((3.0, 3.0, 3.6))


@pytest.mark.parametrize(
    "change",
    [{"fast_seconds": (0.1,)}, {"fast_seconds": (), "reference_seconds": ()}, {"fast_seconds": (0.1, 0.0, 0.1)}],
)
def test_impossible_times_are_refused(change: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(ValueError, match="time"):
        replace(TIMES, **change)  # type: ignore[arg-type]


def test_the_table() -> None:
    table = render_layers(sample_run())
    row = next(line for line in table.splitlines() if line.startswith("| infsa-linear"))
    assert row == (
        "| infsa-linear tie\\_qk=0 | 64 | 4,097 | 330 ms | 100 ms | 3.30 | 3.00 .. 3.60 | 100 MiB / unknown |"
    )


def test_round_trip(tmp_path: Path) -> None:
    write_layers(tmp_path, sample_run())
    assert load_layers(tmp_path) == sample_run()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema_version": 1}', "{" * 5000])
def test_a_file_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / LAYERS).write_text(text)
    with pytest.raises(SchemaError, match=LAYERS):
        load_layers(tmp_path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=LAYERS):
        load_layers(tmp_path)


def run(*words: str) -> tuple[int, str]:
    """Run the command in this process; return its exit code and all that it prints."""
    output = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        patch.setattr(sys, "argv", ["infsa-bench", "layers", *words])
        with pytest.raises(SystemExit) as exited:
            main()
    return int(exited.value.code or 0), output.getvalue()


def test_real_layers(tmp_path: Path) -> None:
    """Two heads counts would double the time; one mechanism has a variant of its own."""
    out = tmp_path / "layers"
    code, output = run(
        "--mechanisms",
        "infsa-linear,softmax",
        "--heads",
        "16",
        "--tokens",
        "17,197",
        "--rounds",
        "3",
        "--out",
        str(out),
    )
    assert code == 0, output
    found = load_layers(out)
    assert [(layer.mechanism, dict(layer.options), layer.tokens) for layer in found.layers] == [
        ("infsa-linear", {}, 17),
        ("infsa-linear", {}, 197),
        ("infsa-linear", {"tie_qk": "0"}, 17),
        ("infsa-linear", {"tie_qk": "0"}, 197),
        ("softmax", {}, 17),
        ("softmax", {}, 197),
    ]
    assert all(len(layer.fast_seconds) == 3 for layer in found.layers)
    assert (out / "table.md").read_text() == render_layers(found)
    assert output.count(" heads, ") == 6
    assert json.loads((out / LAYERS).read_text())["environment"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--tokens", "196"), "196 tokens are no square grid"),
        (("--tokens", "1"), "1 tokens are no square grid"),
        (("--tokens", "x"), "not a whole number"),
        (("--heads", "3"), "3 heads do not divide"),
        (("--heads", "512"), "512 heads do not divide"),
        (("--rounds", "2"), "--rounds must be 3 or more"),
        (("--mechanisms", "sofmax"), "sofmax"),
        (("--mechanisms", "package.module:Class"), "no two implementations"),
        (("--device", "tpu"), "unknown device"),
        (("--device", "cuda:99", "--tokens", "17", "--mechanisms", "softmax"), "cannot be used"),
    ],
)
def test_bad_input(tmp_path: Path, words: tuple[str, ...], complaint: str) -> None:
    out = tmp_path / "layers"
    code, output = run(*words, "--out", str(out))
    assert code == 2, output
    assert complaint in " ".join(output.split())
    assert not out.exists()


def test_a_folder_that_is_taken(tmp_path: Path) -> None:
    code, output = run("--out", str(tmp_path))
    assert code == 2
    assert "exists" in output


# Ratios of medians, reference over fast, that fast must reach at 4,097 tokens, by options and heads; its memory.
LINEAR_SPEEDUPS = {("{}", 64): 2.8, ("{}", 16): 3.0, ("{'tie_qk': '0'}", 64): 3.2, ("{'tie_qk': '0'}", 16): 3.6}
AT_MOST_SLOWER = 1.05
PURE_MEMORY_SHARE = 0.05


@pytest.mark.soak
def test_fast_keeps_what_it_promises(tmp_path: Path) -> None:
    """The bars of ``fast`` on an idle CPU, float32, batch 1, medians of nine rounds; ten minutes."""
    out = tmp_path / "layers"
    code, output = run("--out", str(out))
    assert code == 0, output
    layers = load_layers(out).layers
    missed = []
    for layer in layers:
        least = 1 / AT_MOST_SLOWER
        if layer.mechanism == "infsa-linear" and layer.tokens == 4097:
            least = LINEAR_SPEEDUPS[str(dict(layer.options)), layer.num_heads]
        if (layer.mechanism, layer.num_heads, layer.tokens) == ("infsa-pure", 16, 4097):
            least = 1.0
            assert layer.reference_peak_bytes is not None
            assert layer.fast_peak_bytes is not None
            if layer.fast_peak_bytes > PURE_MEMORY_SHARE * layer.reference_peak_bytes:
                missed.append(f"memory of {layer}")
        if layer.speedup < least:
            missed.append(f"{layer.mechanism} {layer.num_heads} {layer.tokens}: {layer.speedup:.2f} < {least}")
    assert missed == []
    assert len(layers) == 10 * 2 * 3
