"""At which sizes the stages of a reference run measure: those of the paper, and small ones to rehearse it."""

from __future__ import annotations

from dataclasses import dataclass

QUADRATIC = "softmax,infsa-pure"
LINEAR = "infsa-linear,linformer,performer,soft,flatten,agent,mlla"
ALL = "infsa-linear,softmax,infsa-pure,linformer,performer,soft,flatten,agent,mlla"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The sizes at which stages run: those of the paper, or those of a rehearsal.

    ``ladder`` and ``between`` are the resolutions of a ladder, the first ones first; ``top`` is its end, where the
    quadratic mechanisms take longest. ``search`` bounds a search for the largest image; ``short`` are options that cut
    every sweep down.
    """

    mechanisms: str
    quadratic: str
    linear: str
    table: str
    stress: str
    ladder: str
    ladder_quadratic: str
    between: str
    top: str
    train_ladder: str
    kernels: str
    search: str
    memory_limit: str
    ablation: tuple[str, ...]
    replicates: int = 5
    short: tuple[str, ...] = ()


FULL = Sizes(
    mechanisms=ALL,
    quadratic=QUADRATIC,
    linear=LINEAR,
    table="1024",
    stress="9216",
    ladder="224,512,1024,2048,4096,9216",
    ladder_quadratic="224,512,1024,2048,4096",
    between="384,768,1536,3072,6144,8192",
    top="8192,9216",
    train_ladder="224..4096",
    kernels="1024,9216",
    search="32768",
    memory_limit="40GiB",
    ablation=("--measure", "--ablation"),
)

REHEARSAL = Sizes(
    mechanisms="infsa-linear,softmax",
    quadratic="softmax",
    linear="infsa-linear",
    table="32",
    stress="64",
    ladder="32,48",
    ladder_quadratic="32",
    between="64",
    top="80",
    train_ladder="32,48",
    kernels="32,64",
    search="64",
    memory_limit="2GiB",
    # The paper's ablation has one size only; a rehearsal plans it.
    ablation=("--measure", "--ablation", "--dry-run"),
    replicates=3,
    short=("--warmup", "1", "--iterations", "3", "--no-peaks"),
)
