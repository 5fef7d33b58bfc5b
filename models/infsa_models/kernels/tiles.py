"""How large the tiles of every kernel are: what was chosen for a GPU by measuring, or a default. Imports no Triton.

A choice is made once for a GPU, by :mod:`infsa_models.kernels.tune`, never while something is timed: a run that
measures reads it. Choices made for other kernels than these (``kernel_version``) are not used.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

SCHEMA_VERSION = 1
PACKAGED_CHOICES = Path(__file__).with_name("tiles.json")
"""Choices that come with the package."""

DEFAULT, TUNED = "default", "tuned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One program's share of a kernel's work: ``rows`` x ``columns`` of the result, ``inner`` at a time.

    What a kernel has no use for is zero. ``warps`` and ``stages`` are Triton's ``num_warps`` and ``num_stages``.
    """

    rows: int
    columns: int = 0
    inner: int = 0
    warps: int = 4
    stages: int = 3


VENDOR = Tile(rows=0)
"""The choice to leave a product to the library of the vendor, and only the rest to PyTorch's kernels."""

DEFAULTS: Mapping[str, Tile] = {
    "query_sums": Tile(rows=128, columns=128, inner=64, warps=8, stages=3),
    "scores": Tile(rows=64, inner=128, warps=4, stages=3),
    "token_sums": Tile(rows=64, columns=128, warps=4, stages=3),
    "score_gradients": Tile(rows=64, inner=128, warps=4, stages=3),
    "query_gradients": Tile(rows=32, columns=128, warps=4, stages=1),
    "relu_attention": Tile(rows=128, columns=64, warps=4, stages=3),
    "relu_attention/64": Tile(rows=128, columns=64, warps=8, stages=3),
    "relu_attention/128": Tile(rows=64, columns=64, warps=8, stages=2),
    "relu_attention_key_gradients": Tile(rows=64, columns=64, warps=4, stages=2),
    "relu_attention_key_gradients/64": Tile(rows=64, columns=32, warps=4, stages=2),
    "relu_attention_key_gradients/128": Tile(rows=32, columns=32, warps=4, stages=2),
    "relu_attention_query_gradients": Tile(rows=64, columns=64, warps=4, stages=2),
    "relu_attention_query_gradients/128": Tile(rows=64, columns=32, warps=4, stages=2),
    "linear_gelu": Tile(rows=128, columns=128, inner=64, warps=8, stages=3),
    "embed_patches": Tile(rows=128, columns=128, inner=64, warps=8, stages=3),
}
"""By :func:`choice_name` or by kernel alone: what compiles for every GPU since Ampere without spilling registers in
its loop.
"""

MAX_SPLITS, PROGRAMS = 16, 128
"""Sums over tokens are split until there is a program for every multiprocessor of a large GPU, and no further."""


@functools.cache
def kernel_version() -> str:
    """Return what changes whenever the kernels or their compiler do: a digest of sources and Triton's version."""
    digest = hashlib.sha256(_triton_version().encode())
    for path in sorted(Path(__file__).parent.glob("*_kernels.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _triton_version() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return ""


def user_choices() -> Path:
    """Return the file of the choices made on this machine."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "infsa-bench" / "tiles.json"


def tile_of(kernel: str, head_dim: int, device: torch.device) -> Tile:
    """Return the tile of a kernel on a device; ``head_dim`` is 0 for kernels that have nothing to do with heads."""
    name = choice_name(kernel, head_dim)
    if name in _tried:
        return _tried[name]
    return choices_for(device).get(name) or DEFAULTS.get(name) or DEFAULTS[kernel]


@contextmanager
def trying(name: str, tile: Tile) -> Iterator[None]:
    """Use ``tile`` for a choice, as long as this lasts."""
    before = dict(_tried)
    _tried[name] = tile
    try:
        yield
    finally:
        _tried.clear()
        _tried.update(before)


_tried: dict[str, Tile] = {}


def origin(device: torch.device) -> str:
    """Return where the tiles on a device come from: ``default``, or ``tuned`` with a digest of what was chosen."""
    choices = choices_for(device)
    if not choices:
        return DEFAULT
    digest = hashlib.sha256(repr(sorted(choices.items())).encode()).hexdigest()
    return f"{TUNED} {digest[:8]}"


def choice_name(kernel: str, head_dim: int) -> str:
    """Return the name of a choice in the file."""
    return f"{kernel}/{head_dim}" if head_dim else kernel


def choices_for(device: torch.device) -> Mapping[str, Tile]:
    """Return the choices for a device by :func:`choice_name`: this machine's, or else those of the package."""
    if device.type != "cuda":
        return {}
    return _choices_for_gpu(torch.cuda.get_device_name(device))


@functools.cache
def _choices_for_gpu(gpu: str) -> Mapping[str, Tile]:
    for path in (user_choices(), PACKAGED_CHOICES):
        found = read_choices(path).get(gpu, {})
        if found:
            return found
    return {}


def read_choices(path: Path) -> dict[str, dict[str, Tile]]:
    """Return the choices in a file by GPU; none where there is no such file, or it is of other kernels.

    Raises:
        ValueError: the file is none of choices.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} holds no choices of tiles: {error}") from error
    try:
        if content["schema_version"] != SCHEMA_VERSION or content["kernel_version"] != kernel_version():
            return {}
        return {
            gpu: {name: Tile(**tile) for name, tile in choices.items()} for gpu, choices in content["choices"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no choices of tiles: {error!r}") from error


def write_choices(path: Path, gpu: str, choices: Mapping[str, Tile]) -> None:
    """Add the choices for a GPU to a file; those for other GPUs stay, unless they are of other kernels."""
    known = read_choices(path) | {gpu: dict(choices)}
    content = {
        "schema_version": SCHEMA_VERSION,
        "kernel_version": kernel_version(),
        "choices": {
            name: {key: asdict(tile) for key, tile in sorted(tiles.items())} for name, tiles in sorted(known.items())
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
    _choices_for_gpu.cache_clear()
