"""The options of mechanisms and of their host: departures from the defaults that a case may name. Imports no torch.

A program that plans reads names and values here, and refuses wrong ones before anything is built. The tests hold this
table against the classes' keyword arguments.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

OptionValue = str | int | float | bool

BOTH = ("reference", "fast")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option.

    Attributes:
        kind: type of its value.
        choices: the values that it can have; empty for all of its type.
        implementations: those that know it.
        keeps_sizes: whether the formulas of ``cost.py``, which are of the defaults, hold with it.
    """

    kind: type[OptionValue]
    choices: tuple[str, ...] = ()
    implementations: tuple[str, ...] = BOTH
    keeps_sizes: bool = False

    def parse(self, text: str) -> OptionValue:
        """Return the value that ``text`` stands for; a truth value is written 0 or 1.

        Raises:
            ValueError: it is none.
        """
        if self.choices and text not in self.choices:
            raise ValueError(f"{text!r} is none of {', '.join(self.choices)}")
        if self.kind is bool:
            if text not in ("0", "1"):
                raise ValueError(f"{text!r} is neither 0 nor 1")
            return text == "1"
        if self.kind is int and not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) > 0):
            raise ValueError(f"{text!r} is not a positive whole number")
        if self.kind is float:
            if not re.fullmatch(r"0?\.[0-9]{1,9}", text) or float(text) == 0:
                raise ValueError(f"{text!r} is not a number between 0 and 1")
            return float(text)
        return self.kind(text)


KERNELS_VARIABLE = "INFSA_KERNELS"
"""The environment variable that says what ``kernels=auto`` is, for all processes of a run: ``torch`` or ``triton``."""

HOST_OPTIONS: Mapping[str, Option] = {
    "cls_prune": Option(kind=bool, keeps_sizes=True),
    "kernels": Option(kind=str, choices=("auto", "triton", "torch"), implementations=("fast",), keeps_sizes=True),
}
"""Options that every mechanism has: those of :func:`infsa_models.vit.build_vit`."""

OPTIONS: Mapping[str, Mapping[str, Option]] = {
    "softmax": {
        "backend": Option(
            kind=str,
            choices=("auto", "flash", "mem-efficient", "cudnn", "math", "xformers"),
            implementations=("fast",),
            keeps_sizes=True,
        )
    },
    "linformer": {"k": Option(kind=int), "share_kv": Option(kind=bool), "one_kv_head": Option(kind=bool)},
    "performer": {
        "nb_features": Option(kind=int),
        "qkv_bias": Option(kind=bool),
        "generalized": Option(kind=bool),
    },
    "soft": {"ratio": Option(kind=int), "conv_size": Option(kind=int), "newton_steps": Option(kind=int)},
    "flatten": {
        "focusing_factor": Option(kind=int),
        "kernel_size": Option(kind=int),
        "fused_qkv": Option(kind=bool),
    },
    "agent": {"agent_num": Option(kind=int), "fused_qkv": Option(kind=bool)},
    "mlla": {},
    "infsa-pure": {"rho": Option(kind=float, keeps_sizes=True)},
    "infsa-linear": {
        "rho": Option(kind=float, keeps_sizes=True),
        "tie_qk": Option(kind=bool),
        "activation": Option(
            kind=str, choices=("relu", "gelu", "silu"), implementations=("reference",), keeps_sizes=True
        ),
    },
}


def options_of(mechanism: str, implementation: str) -> dict[str, Option]:
    """Return the options of an implementation, the host's included; of a mechanism from elsewhere only those."""
    own = OPTIONS.get(mechanism, {})
    return {
        name: option for name, option in {**HOST_OPTIONS, **own}.items() if implementation in option.implementations
    }


def formulas_hold(mechanism: str, implementation: str, names: Iterable[str]) -> bool:
    """Tell whether the formulas of ``cost.py`` hold with options of these names."""
    known = options_of(mechanism, implementation)
    return all(name in known and known[name].keeps_sizes for name in names)


def parse_options(mechanism: str, implementation: str, texts: Mapping[str, str]) -> dict[str, OptionValue]:
    """Return the values of options by name.

    Raises:
        KeyError: an option that the implementation does not know.
        ValueError: a value that the option cannot have.
    """
    known = options_of(mechanism, implementation)
    return {name: known[name].parse(text) for name, text in texts.items()}
