"""What can be built: the table of mechanisms and the two published backbones. Imports no torch.

A table, not decorators: a program that only plans or reports lists names without importing torch, an unknown
name fails before any GPU time, and a reader sees the whole catalogue at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

ENTRY_POINT_GROUP = "infsa_bench.mechanisms"
PATCH_SIZE = 16
EMBED_DIM = 1024
MLP_RATIO = 4
NUM_CLASSES = 1000
BASE_GRID = (14, 14)
"""Patch grid of 224 x 224, the resolution of the learned tables that are resampled to others."""

PIECE_TOKENS = 16_384
"""Tokens of a batch that ``fast`` takes at a time: 33 MB of an activation of width 1024 in bfloat16."""
LEAN_TOKENS = 131_072
"""Tokens of a batch from which ``fast`` has a lean host: the ordinary one would need ten activations, 2.7 GB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """A plain pre-norm ViT, patch 16, width 1024 (paper, section 4.1)."""

    depth: int
    num_heads: int
    embed_dim: int = EMBED_DIM


CONFIGS: Mapping[str, Backbone] = {
    "4L-64H": Backbone(depth=4, num_heads=64),
    "24L-16H": Backbone(depth=24, num_heads=16),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mechanism:
    """One attention mechanism, by name; nothing is imported until :func:`load_class`.

    Attributes:
        title: Name as printed.
        implementations: Implementation name (``reference``, ``fast``) to ``"package.module:Class"``.
        complexity: Time of the mixing step in tokens N, width D and the mechanism's own sizes.
        citation: Where it was published.
        departures: Differences of ``reference`` from the published code; tables print them as footnotes.
        tools: How ``fast`` computes the same function as ``reference``; tables print them as footnotes.
        unsupported: Precision name to the reason why ``reference`` cannot run in it.
    """

    title: str
    implementations: Mapping[str, str]
    complexity: str
    citation: str
    departures: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    unsupported: Mapping[str, str] = field(default_factory=dict)


def _both(target: str) -> dict[str, str]:
    """Return the two implementations of a mechanism of this package: the class, and the same with Fast before it."""
    module, _, name = target.partition(":")
    return {
        "reference": f"infsa_models.mechanisms.{module}:{name}",
        "fast": f"infsa_models.mechanisms.{module}:Fast{name}",
    }


# Tools that several mechanisms use.
FUSED = "PyTorch's fused attention (softmax with backend=math: its written-out one)"
FOLDED = "inference: output projection and the host's dense multiplied at build"
POOLED_TOKENS = "pooled queries from pooled tokens: pool(x) Wq"
CHANNELS_LAST = "convolutions in the layout of the tokens"
IN_PIECES = f"nothing larger than an activation beyond {PIECE_TOKENS:,} tokens: pieces, with float32 sums"
STREAMED = (
    f"from {LEAN_TOKENS:,} tokens on the input is normalised a piece at a time: nothing else of the layer is whole"
)

HAND_WRITTEN = "hand-written Triton kernels on NVIDIA GPUs in 16 bits (kernels=torch: PyTorch's)"
HOST_KERNELS = f"host, inference: patch embedding, residual with LayerNorm, and GELU in {HAND_WRITTEN}"

MECHANISMS: Mapping[str, Mechanism] = {
    "softmax": Mechanism(
        title="Softmax ViT",
        implementations=_both("softmax:SoftmaxAttention"),
        complexity="O(N^2 D)",
        citation="Vaswani et al. 2017; Dosovitskiy et al. 2021",
        departures=(
            "the N x N matrix is written to memory, as the paper's latencies imply; "
            "timm and Hugging Face ViT call a tiled kernel today",
        ),
        tools=(
            FUSED,
            FOLDED,
            HOST_KERNELS,
        ),
    ),
    "linformer": Mechanism(
        title="Linformer",
        implementations=_both("linformer:LinformerAttention"),
        complexity="O(N k D)",
        citation="Wang et al. 2020, arXiv 2006.04768",
        tools=(
            "tokens are compressed before they are projected, for N > k: (E^T x) Wk",
            FUSED,
            STREAMED,
            FOLDED,
            HOST_KERNELS,
        ),
    ),
    "performer": Mechanism(
        title="Performer",
        implementations=_both("performer:PerformerAttention"),
        complexity="O(N m D)",
        citation="Choromanski et al. 2021, arXiv 2009.14794",
        departures=(
            "features, sums over tokens and the division run in float32 whatever the precision "
            "(the package gives NaN in float16)",
            "the random features are drawn once (the package redraws them every 1000 training steps)",
        ),
        tools=(
            "epsilons leave the sums, the factors m^-1/2 cancel",
            IN_PIECES,
            STREAMED,
            FOLDED,
            HOST_KERNELS,
        ),
    ),
    "soft": Mechanism(
        title="SOFT",
        implementations=_both("soft:SoftAttention"),
        complexity="O(N m D + h m^3)",
        citation="Lu et al. 2021, arXiv 2110.11945",
        departures=(
            "49 landmarks by average pooling at every resolution, as its authors describe "
            "(its public code strides a convolution, which is quadratic in N)",
            "the class token follows the authors' answer in fudan-zvg/SOFT#11 (no published layer has one)",
            "kernels, Newton and their products run in float32 whatever the precision",
        ),
        tools=(
            "K1 (Newton(K2) (K1^T V)), from the right",
            POOLED_TOKENS,
            CHANNELS_LAST,
            IN_PIECES,
            FOLDED,
            HOST_KERNELS,
        ),
    ),
    "flatten": Mechanism(
        title="FLatten",
        implementations=_both("flatten:FlattenAttention"),
        complexity="O(N D^2 / h)",
        citation="Han et al. 2023, arXiv 2308.00442",
        departures=(
            "the class token is an ordinary token outside the convolution (its public code has none)",
            "everything between the projections runs in float32 whatever the precision (float16 gives 0/0)",
        ),
        tools=(
            "the norms of a query go into its denominator",
            CHANNELS_LAST,
            IN_PIECES,
            FOLDED,
            HOST_KERNELS,
        ),
    ),
    "agent": Mechanism(
        title="Agent",
        implementations=_both("agent:AgentAttention"),
        complexity="O(N n_a D)",
        citation="Han et al. 2024, arXiv 2312.08874",
        departures=("49 agents in every layer (the published base model has 81, and only in 4 of 12 layers)",),
        tools=(
            POOLED_TOKENS,
            "biases from resized tables, the same for all images, as products with one matrix per axis",
            CHANNELS_LAST,
            IN_PIECES,
            FOLDED,
            HOST_KERNELS,
        ),
    ),
    "mlla": Mechanism(
        title="MLLA",
        implementations=_both("mlla:MllaAttention"),
        complexity="O(N D^2 / h)",
        citation="Han et al. 2024, arXiv 2405.16605",
        departures=(
            "the gated mixer only, without the block's two positional convolutions; "
            "its output projection takes the place of the host's extra dense",
            "the class token is not rotated and bypasses the convolutions (its public code has none)",
            "rotation in real arithmetic (there is no complex bfloat16), denominator in float32",
        ),
        tools=(
            "rotations from one table for rows and one for columns",
            CHANNELS_LAST,
            IN_PIECES,
            HOST_KERNELS,
        ),
    ),
    "infsa-pure": Mechanism(
        title="Pure-InfSA",
        implementations=_both("infsa_pure:PureInfsaAttention"),
        complexity="O(N^2 D)",
        citation="Roffo et al. 2026, arXiv 2603.00175",
        departures=(
            "rho stays a learnable tensor on the device (the public code reads it back to the host in every layer)",
            "the norm accumulates in float32; the matrix is divided by the nearest power of two, "
            "the N x D result by the rest",
        ),
        tools=(
            "one pass over tiles for relu(q k^T) v and the norm; the norm scales the output projection",
            f"the tiles: {HAND_WRITTEN}",
            FOLDED,
            HOST_KERNELS,
        ),
    ),
    "infsa-linear": Mechanism(
        title="Linear-InfSA",
        implementations=_both("infsa_linear:LinearInfsaAttention"),
        complexity="O(N D)",
        citation="Roffo et al. 2026, arXiv 2603.00175",
        departures=(
            "one projection serves as query and key (the paper's text and parameter counts; its public code has two)",
            "rho stays a learnable tensor on the device (the public code reads it back to the host in every layer)",
            "sums over tokens accumulate in float32",
        ),
        tools=(
            "scores and means of the tokens themselves: K and V are never made, the output projection meets one vector",
            "the host gets one row for all tokens",
            "backward pass in closed form",
            f"the passes over tokens: {HAND_WRITTEN}",
            IN_PIECES,
            STREAMED,
            FOLDED,
            HOST_KERNELS,
        ),
    ),
}


def available() -> dict[str, Mechanism]:
    """Return every mechanism by name: the nine of this package, then those of installed entry points.

    An installed package adds one with an entry point ``name = "package.module:Class"`` in the group
    ``infsa_bench.mechanisms``. It cannot replace a built-in name.

    Raises:
        ValueError: an entry point takes a name that exists already.
    """
    found = dict(MECHANISMS)
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        if entry.name in found:
            raise ValueError(f"mechanism {entry.name!r} of {entry.value} exists already")
        found[entry.name] = external(entry.value, title=entry.name)
    return found


def external(target: str, *, title: str | None = None) -> Mechanism:
    """Return a mechanism for ``"package.module:Class"`` without importing it.

    Raises:
        ValueError: ``target`` is not of that form.
    """
    module, colon, name = target.partition(":")
    if not colon or not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"{target!r} is not of the form package.module:Class")
    return Mechanism(
        title=title or name,
        implementations={"reference": target},
        complexity="not stated",
        citation="not stated",
    )


def load_class(target: str) -> type[nn.Module]:
    """Import and return the class behind ``"package.module:Class"`` (this imports torch).

    Raises:
        ImportError: no such module.
        TypeError: the module has no such name, or it is not a subclass of ``torch.nn.Module``.
    """
    module, _, name = target.partition(":")
    found = getattr(import_module(module), name, None)
    if not (isinstance(found, type) and issubclass(found, import_module("torch.nn").Module)):
        raise TypeError(f"{target} is not a torch.nn.Module class")
    return found
