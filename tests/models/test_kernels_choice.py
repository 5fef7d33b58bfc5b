"""Whose kernels run, and with which tiles: what is decided, by whom, and what of it is kept."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from kernel_cases import error

from infsa_models.kernels import support, tiles
from infsa_models.kernels.tiles import DEFAULTS, Tile

CPU = torch.device("cpu")
GPU = "NVIDIA Imagined"


def test_auto_leaves_a_cpu_to_pytorch() -> None:
    assert support.chosen("auto", 64, 4, CPU, torch.float16) == "torch"
    assert support.chosen("torch", 64, 4, CPU, torch.float16) == "torch"


@pytest.mark.parametrize(
    ("width", "num_heads", "reason"),
    [
        (64, 8, "head dimension 8 "),
        (192, 4, "head dimension 48 "),
        (512, 2, "head dimension 256 "),
        (96, 6, "width 96 "),
    ],
)
def test_sizes_that_no_kernel_has(width: int, num_heads: int, reason: str) -> None:
    with pytest.raises(NotImplementedError, match=f"kernels triton: {reason}"):
        support.chosen("triton", width, num_heads, CPU, torch.float16)


def test_a_cpu_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(NotImplementedError, match="TRITON_INTERPRET=1"):
        support.chosen("triton", 64, 4, CPU, torch.float16)


def test_a_machine_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "HAS_TRITON", False)
    with pytest.raises(NotImplementedError, match="Triton is not installed"):
        support.chosen("triton", 64, 4, CPU, torch.float16)
    assert support.chosen("auto", 64, 4, CPU, torch.float16) == "torch"


def test_the_environment_says_what_auto_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFSA_KERNELS", "triton")
    assert support.chosen("auto", 64, 4, CPU, torch.float16) == "triton"
    assert support.chosen("torch", 64, 4, CPU, torch.float16) == "torch"
    monkeypatch.setenv("INFSA_KERNELS", "cuda")
    with pytest.raises(ValueError, match="INFSA_KERNELS=cuda is none of auto, triton, torch"):
        support.chosen("auto", 64, 4, CPU, torch.float16)


NO_TRITON = """
import sys
sys.modules["triton"] = None
from infsa_models.vit import build_vit
import torch
model = build_vit("infsa-linear", "4L-64H", 32, implementation="fast")
print(model(torch.zeros(1, 3, 32, 32)).shape[1], model.choices(1))
"""


def test_everything_imports_and_runs_where_triton_cannot_be_imported() -> None:
    done = subprocess.run([sys.executable, "-c", NO_TRITON], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "1000 {'kernels': 'torch'}"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of this machine, and a GPU whose name torch would give."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: GPU)
    tiles._choices_for_gpu.cache_clear()
    yield tiles.user_choices()
    tiles._choices_for_gpu.cache_clear()


CUDA = torch.device("cuda", 0)
CHOSEN = Tile(rows=64, columns=128, inner=32, warps=4, stages=2)


def test_the_default_and_then_what_was_chosen(cache: Path) -> None:
    assert tiles.tile_of("query_sums", 16, CUDA) == DEFAULTS["query_sums"]
    assert tiles.origin(CUDA) == "default"
    tiles.write_choices(cache, GPU, {"query_sums/16": CHOSEN})
    assert tiles.tile_of("query_sums", 16, CUDA) == CHOSEN
    assert tiles.tile_of("query_sums", 64, CUDA) == DEFAULTS["query_sums"]
    assert tiles.tile_of("query_sums", 16, CPU) == DEFAULTS["query_sums"]
    first = tiles.origin(CUDA)
    assert first.startswith("tuned ")
    tiles.write_choices(cache, GPU, {"query_sums/16": DEFAULTS["query_sums"]})
    assert tiles.origin(CUDA) != first


def test_a_default_of_a_head_dimension() -> None:
    assert tiles.tile_of("relu_attention", 64, CPU) == DEFAULTS["relu_attention/64"] != DEFAULTS["relu_attention"]


def test_choices_for_other_gpus_stay(cache: Path) -> None:
    tiles.write_choices(cache, "another", {"linear_gelu": CHOSEN})
    tiles.write_choices(cache, GPU, {"linear_gelu": CHOSEN})
    assert tiles.read_choices(cache).keys() == {"another", GPU}


def test_choices_of_other_kernels_are_not_used(cache: Path) -> None:
    tiles.write_choices(cache, GPU, {"linear_gelu": CHOSEN})
    content = json.loads(cache.read_text())
    cache.write_text(json.dumps(content | {"kernel_version": "0" * 12}))
    tiles._choices_for_gpu.cache_clear()
    assert tiles.tile_of("linear_gelu", 0, CUDA) == DEFAULTS["linear_gelu"]
    assert tiles.origin(CUDA) == "default"


@pytest.mark.parametrize(
    "content", ["[]", "{}", "no json", '{"schema_version": 1, "kernel_version": "%s", "choices": []}']
)
def test_a_file_that_holds_no_choices_is_named(cache: Path, content: str) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(content.replace("%s", tiles.kernel_version()))
    with pytest.raises(ValueError, match=r"tiles\.json holds no choices of tiles"):
        tiles.read_choices(cache)


def test_this_machines_choices_go_before_those_of_the_package(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "PACKAGED_CHOICES", tmp_path / "packaged.json")
    tiles.write_choices(tiles.PACKAGED_CHOICES, GPU, {"linear_gelu": CHOSEN})
    assert tiles.tile_of("linear_gelu", 0, CUDA) == CHOSEN
    tiles.write_choices(cache, GPU, {"linear_gelu": tiles.VENDOR})
    assert tiles.tile_of("linear_gelu", 0, CUDA) == tiles.VENDOR


def test_another_compiler_is_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles.kernel_version.cache_clear()
    before = tiles.kernel_version()
    monkeypatch.setattr(tiles, "_triton_version", lambda: "0.0")
    tiles.kernel_version.cache_clear()
    assert tiles.kernel_version() != before
    tiles.kernel_version.cache_clear()


def test_the_vendors_product_is_a_choice() -> None:
    from infsa_models.kernels.mlp import linear_gelu

    x, weight, bias = torch.randn(1, 5, 64), torch.randn(128, 64), torch.randn(128)
    with tiles.trying("linear_gelu", tiles.VENDOR):
        assert error(linear_gelu(x, weight, bias), torch.nn.functional.gelu(x @ weight.T + bias)) <= 1e-6


def test_tuning_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    tune = pytest.importorskip("infsa_models.kernels.tune", reason="needs Triton")
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    assert tune.main([]) == 2
    assert capsys.readouterr().err == "tiles are chosen by measuring on a GPU: there is none\n"


def test_tuning_takes_the_fastest_tile_that_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every job at a small size, in the interpreter; the times are made up, by what tile is being tried."""
    tune = pytest.importorskip("infsa_models.kernels.tune", reason="needs Triton")
    small = [Tile(rows=16, columns=64, inner=64), Tile(rows=32, columns=64, inner=64)]
    monkeypatch.setattr(tune, "CANDIDATES", dict.fromkeys(tune.CANDIDATES, tuple(small)))
    said: list[str] = []

    def rows(run: object) -> float:
        return float(next(iter(tiles._tried.values())).rows)

    jobs = tune.jobs(CPU, grid=4, width=64, heads=(4,), dtype=torch.float16)
    chosen = tune.tune(jobs, CPU, rows, said.append)
    assert {name.split("/")[0] for name in chosen} == {name.split("/")[0] for name in DEFAULTS}
    assert set(chosen.values()) == {small[0]}
    assert not [line for line in said if " takes " not in line]
    assert not tiles._tried


def test_a_check_names_what_is_wrong() -> None:
    tune = pytest.importorskip("infsa_models.kernels.tune", reason="needs Triton")
    jobs = list(tune.jobs(CPU, grid=2, width=64, heads=(4,), dtype=torch.float16))
    said: list[str] = []
    assert tune.check(iter(jobs), CPU, said.append)
    assert said == ["all kernels agree with PyTorch's"]
    wrong = dataclasses.replace(jobs[0], expected=lambda: tuple(result + 1 for result in jobs[0].expected()))
    assert not tune.check(iter([*jobs[1:], wrong]), CPU, said.append)
    assert said[-1] == "1 kernels are wrong or do not run"
    assert said[-2].startswith("linear_gelu: ")


def test_tuning_leaves_out_what_is_wrong_or_does_not_run() -> None:
    tune = pytest.importorskip("infsa_models.kernels.tune", reason="needs Triton")
    right, wrong, broken = Tile(rows=1), Tile(rows=2), Tile(rows=3)

    def run() -> tuple[torch.Tensor, ...]:
        tile = tiles.tile_of("linear_gelu", 0, CPU)
        if tile == broken:
            raise AssertionError
        return (torch.tensor([float("nan") if tile == wrong else 1.0, 2.0]),)

    job = tune.Job(
        kernel="linear_gelu",
        head_dim=0,
        candidates=(wrong, broken, right),
        run=run,
        expected=lambda: (torch.tensor([1.0, 2.0]),),
    )
    unusable = dataclasses.replace(job, kernel="embed_patches", expected=lambda: torch.zeros(1).reshape(2))
    said: list[str] = []
    kept: list[dict[str, Tile]] = []
    with tiles.trying("linear_gelu", wrong):
        jobs = iter([job, unusable, job])
        chosen = tune.tune(jobs, CPU, lambda _: 1.0, said.append, lambda choices: kept.append(dict(choices)))
    assert kept == [chosen] == [{"linear_gelu": right}]
    assert [line.split(")")[1].split()[0] for line in said[:-1]] == ["is", "does", "takes"]
    assert said[1].endswith("AssertionError: ")
    assert "PyTorch's kernels do not run: RuntimeError" in said[-1]
