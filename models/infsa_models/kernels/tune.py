"""Choose the tiles of all kernels for the GPU at hand, and keep the choice: ``python -m infsa_models.kernels.tune``.

Every candidate must agree with PyTorch's kernels before its time counts; one that does not, or does not compile, is
named. The times are those of whole operators at the sizes of the published models (4,096 patches, width 1024), so that
what is chosen is what they need. A matter of minutes; nothing is tuned while a benchmark runs. A file of choices that
is put beside ``tiles.py`` as ``tiles.json`` comes with the package.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from infsa_models import mean_context as in_torch
from infsa_models import relu_attention as relu
from infsa_models.kernels import mean_context as in_triton
from infsa_models.kernels.mean_context_steps import Norm
from infsa_models.kernels.mlp import linear_gelu
from infsa_models.kernels.patches import embed_patches
from infsa_models.kernels.support import TORCH, TRITON, problem
from infsa_models.kernels.tiles import VENDOR, Tile, choice_name, tile_of, trying, user_choices, write_choices
from infsa_models.mean_context import Projections
from infsa_models.registry import EMBED_DIM, MLP_RATIO, PATCH_SIZE

GRID = 64
"""Patches a side: 1024 x 1024 pixels."""
HEADS = (64, 16)
TOLERANCE = 0.05
"""Largest error against PyTorch's kernels, relative to the largest number: what wrong indices exceed, and rounding in
bfloat16 does not.
"""

Results = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A kernel to choose a tile for: an operator that runs it, and the same from PyTorch."""

    kernel: str
    head_dim: int
    candidates: tuple[Tile, ...]
    run: Callable[[], Results]
    expected: Callable[[], Results]

    @property
    def name(self) -> str:
        """Name of the choice."""
        return choice_name(self.kernel, self.head_dim)


def main(words: list[str] | None = None) -> int:
    """Tune on the current device and write the choices, or check what there is; return the exit code.

    It is 2 where the kernels cannot run, and 1 where a check found one that is wrong.
    """
    parser = argparse.ArgumentParser(prog="python -m infsa_models.kernels.tune", description=__doc__.splitlines()[0])
    parser.add_argument("--copy-to", type=Path, help=f"another file for the choices, beside {user_choices()}")
    parser.add_argument("--check", action="store_true", help="run every kernel once, and tell whether it is right")
    options = parser.parse_args(words)
    if not torch.cuda.is_available():
        print("tiles are chosen by measuring on a GPU: there is none", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    reason = problem(EMBED_DIM, HEADS[0], device, torch.bfloat16)
    if reason is not None:
        print(f"the kernels cannot run here: {reason}", file=sys.stderr)
        return 2
    if options.check:
        return 0 if check(jobs(device), device, print) else 1
    gpu = torch.cuda.get_device_name(device)
    paths = [path for path in (user_choices(), options.copy_to) if path is not None]

    def keep(choices: Mapping[str, Tile]) -> None:
        for path in paths:
            write_choices(path, gpu, choices)

    choices = tune(jobs(device), device, milliseconds, print, keep)
    print(f"{len(choices)} choices for {gpu} in {' and '.join(map(str, paths))}")
    return 0


def tune(
    jobs: Iterator[Job],
    device: torch.device,
    milliseconds: Callable[[Callable[[], Results]], float],
    say: Callable[[str], None],
    keep: Callable[[Mapping[str, Tile]], None] = lambda _: None,
) -> dict[str, Tile]:
    """Return the fastest tile of every job that computes what PyTorch does; none of a job where none does.

    What was chosen so far goes to ``keep`` after every job. After an error that leaves the device unusable no job is
    begun any more.
    """
    chosen: dict[str, Tile] = {}
    for job in jobs:
        default = tile_of(job.kernel, job.head_dim, device)
        fastest = float("inf")
        try:
            expected = job.expected()
        except RuntimeError as error:
            say(f"{job.name}: PyTorch's kernels do not run: {_first_line(error)}")
            break
        for tile in dict.fromkeys((default, *job.candidates)):
            try:
                with trying(job.name, tile):
                    largest = _largest_error(job.run(), expected)
                    if not largest <= TOLERANCE:
                        say(f"{job.name}: {tile} is wrong by {largest:.2g}")
                        continue
                    time = milliseconds(job.run)
            except Exception as error:  # noqa: BLE001 - a tile that no compiler takes ends in many kinds of errors
                say(f"{job.name}: {tile} does not run: {_first_line(error)}")
                continue
            say(f"{job.name}: {tile} takes {time:.4f} ms")
            if time < fastest:
                fastest, chosen[job.name] = time, tile
        keep(chosen)
    return chosen


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def check(jobs: Iterator[Job], device: torch.device, say: Callable[[str], None]) -> bool:
    """Tell whether every kernel, with the tile it has, computes what PyTorch does; say which does not."""
    wrong = 0
    for job in jobs:
        tile = tile_of(job.kernel, job.head_dim, device)
        try:
            largest = _largest_error(job.run(), job.expected())
        except Exception as error:  # noqa: BLE001 - as above
            say(f"{job.name}: {tile} does not run: {_first_line(error)}")
            wrong += 1
            continue
        if not largest <= TOLERANCE:
            say(f"{job.name}: {tile} is wrong by {largest:.2g}")
            wrong += 1
    say(f"{wrong} kernels are wrong or do not run" if wrong else "all kernels agree with PyTorch's")
    return not wrong


def milliseconds(run: Callable[[], Results]) -> float:
    """Return the median time of ``run``."""
    from triton.testing import do_bench

    return float(do_bench(run, warmup=10, rep=50, return_mode="median"))


def _largest_error(ours: Results, theirs: Results) -> float:
    """Return the largest error of all, relative to the largest number of each; NaN where there is one."""
    errors = []
    for one, other in zip(ours, theirs, strict=True):
        largest = other.float().abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        errors.append((one.float() - other.float()).abs().max() / largest)
    return torch.stack(errors).max().item()


def _tiles(**axes: tuple[int, ...]) -> tuple[Tile, ...]:
    return tuple(Tile(**dict(zip(axes, sizes, strict=True))) for sizes in itertools.product(*axes.values()))


CANDIDATES: Mapping[str, tuple[Tile, ...]] = {
    "linear_gelu": (
        VENDOR,
        *_tiles(rows=(128,), columns=(128, 256), inner=(64,), warps=(8,), stages=(3, 4)),
        Tile(rows=256, columns=128, inner=64, warps=8, stages=3),
    ),
    "query_sums": (
        *_tiles(rows=(128,), columns=(128, 256), inner=(64,), warps=(8,), stages=(3, 4)),
        Tile(rows=64, columns=128, inner=64, warps=4, stages=4),
    ),
    "relu_attention": (
        *_tiles(rows=(64, 128), columns=(64, 128), warps=(4, 8), stages=(3,)),
        Tile(rows=128, columns=64, warps=8, stages=2),
    ),
    "scores": _tiles(rows=(32, 64), inner=(64, 128), warps=(4,), stages=(3,)),
    "token_sums": _tiles(rows=(64, 128), columns=(64, 128), warps=(4,), stages=(3,)),
    "embed_patches": _tiles(rows=(64, 128), columns=(128, 256), inner=(64,), warps=(8,), stages=(3,)),
    "relu_attention_key_gradients": _tiles(rows=(32, 64), columns=(64,), warps=(4, 8), stages=(2,)),
    "relu_attention_query_gradients": _tiles(rows=(64, 128), columns=(64,), warps=(4, 8), stages=(2,)),
    "score_gradients": _tiles(rows=(32, 64), inner=(128,), warps=(4,), stages=(3,)),
    "query_gradients": _tiles(rows=(16, 32), columns=(128,), warps=(4, 8), stages=(1,)),
}
"""By kernel, beside its default."""


def jobs(
    device: torch.device,
    *,
    grid: int = GRID,
    width: int = EMBED_DIM,
    heads: tuple[int, ...] = HEADS,
    dtype: torch.dtype = torch.bfloat16,
) -> Iterator[Job]:
    """Yield a job for every kernel whose tile is chosen, at every number of heads, for ``grid`` x ``grid`` patches.

    Those of the host, which every mechanism has, come first.
    """
    torch.manual_seed(0)
    tokens = grid * grid + 1

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    def matrix(rows: int, columns: int) -> Tensor:
        return (torch.randn(rows, columns, device=device) / columns**0.5).to(dtype)

    x = normal(1, tokens, width)
    hidden, bias = matrix(MLP_RATIO * width, width), normal(MLP_RATIO * width)
    yield Job(
        kernel="linear_gelu",
        head_dim=0,
        candidates=CANDIDATES["linear_gelu"],
        run=lambda: (linear_gelu(x, hidden, bias),),
        expected=lambda: (F.gelu(F.linear(x, hidden, bias)),),
    )
    side = PATCH_SIZE * grid
    images, weight = normal(1, 3, side, side), matrix(width, 3 * PATCH_SIZE**2).view(width, 3, PATCH_SIZE, PATCH_SIZE)
    class_token, positions = normal(1, 1, width), normal(1, tokens, width)

    def embedded() -> Results:
        patches = F.conv2d(images, weight, bias[:width], stride=PATCH_SIZE).flatten(2).transpose(1, 2)
        return (torch.cat([class_token, patches], dim=1) + positions,)

    yield Job(
        kernel="embed_patches",
        head_dim=0,
        candidates=CANDIDATES["embed_patches"],
        run=lambda: (embed_patches(images, weight, bias[:width], class_token, positions),),
        expected=embedded,
    )
    for num_heads in heads:
        yield from _linear_infsa_jobs(x, matrix, normal, num_heads)
        yield from _pure_infsa_jobs([normal(1, tokens, width) for _ in range(4)], num_heads)


def _linear_infsa_jobs(
    x: Tensor, matrix: Callable[[int, int], Tensor], normal: Callable[[int], Tensor], num_heads: int
) -> Iterator[Job]:
    width = x.shape[-1]
    tensors = [matrix(width, width) if index % 2 == 0 else normal(width) for index in range(6)]
    projections, rho_logit = Projections(*tensors), torch.zeros((), device=x.device)
    norm = Norm(normal(width), normal(width), 1e-6)
    whole = [slice(0, x.shape[1])]

    def context() -> Results:
        return (in_triton.pooled_context(x, norm, projections, rho_logit, num_heads),)

    def expected_context() -> Results:
        tokens = F.layer_norm(x, (width,), norm.weight, norm.bias, norm.epsilon)
        pooled = in_torch.pool_tokens(lambda piece: tokens[:, piece], num_heads, whole, projections)
        return ((torch.sigmoid(rho_logit) * pooled.context).flatten(1),)

    for kernel in ("query_sums", "scores", "token_sums"):
        yield Job(
            kernel=kernel,
            head_dim=width // num_heads,
            candidates=CANDIDATES[kernel],
            run=context,
            expected=expected_context,
        )
    kept = in_triton.pool_tokens(x, projections, num_heads, keep_queries=True)
    expected_kept = in_torch.pool_tokens(lambda piece: x[:, piece], num_heads, whole, projections)
    gradient = torch.randn(kept.context.shape, device=x.device)
    for kernel in ("score_gradients", "query_gradients"):
        yield Job(
            kernel=kernel,
            head_dim=width // num_heads,
            candidates=CANDIDATES[kernel],
            run=lambda: in_triton.pooling_gradients(x, projections, kept, gradient),
            expected=lambda: in_torch.pooling_gradients(num_heads, whole, x, projections, expected_kept, gradient),
        )


def _pure_infsa_jobs(tensors: list[Tensor], num_heads: int) -> Iterator[Job]:
    query, key, value, incoming = tensors
    head_dim = query.shape[-1] // num_heads
    scale, rise = 1 / head_dim, torch.full((1, num_heads), 1e-3, device=incoming.device)

    def forward(kernels: str) -> Results:
        return relu.relu_attention(query, key, value, num_heads, scale, kernels)

    def backward(kernels: str) -> Results:
        gradients: Results = relu.relu_attention_backward(query, key, value, incoming, rise, num_heads, scale, kernels)
        return gradients

    for kernel, run in (
        ("relu_attention", forward),
        ("relu_attention_key_gradients", backward),
        ("relu_attention_query_gradients", backward),
    ):
        yield Job(
            kernel=kernel,
            head_dim=head_dim,
            candidates=CANDIDATES[kernel],
            run=functools.partial(run, TRITON),
            expected=functools.partial(run, TORCH),
        )


if __name__ == "__main__":
    sys.exit(main())
