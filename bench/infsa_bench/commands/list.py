"""``infsa-bench list``: what can be measured."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from infsa_bench.paper import parameters_millions
from infsa_bench.spec import known_mechanisms
from infsa_models.cost import vit_cost
from infsa_models.options import OPTIONS, Option
from infsa_models.registry import CONFIGS

VALUES = {bool: "0|1", int: "N", float: "0..1", str: "TEXT"}


def list_mechanisms(console: Console) -> None:
    """Print every mechanism: complexity, parameters at 224 x 224 (ours / paper), implementations, departures."""
    mechanisms = known_mechanisms()
    table = Table(
        title="Attention mechanisms; parameters at 224 x 224, ours and as published (millions)",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("mechanism", no_wrap=True)
    table.add_column("time", no_wrap=True)
    for config in CONFIGS:
        table.add_column(config, justify="right", no_wrap=True)
        table.add_column("paper", justify="right", no_wrap=True)
    for name, mechanism in mechanisms.items():
        counts = [cell for config in CONFIGS for cell in (_ours(name, config), _published(name, config))]
        table.add_row(name, mechanism.complexity, *counts)
    console.print(table)
    for name, mechanism in mechanisms.items():
        implementations = ", ".join(mechanism.implementations)
        console.print(f"{name}: {mechanism.title} ({mechanism.citation})", markup=False, highlight=False)
        console.print(f"  implementations: {implementations}", markup=False, highlight=False)
        for departure in mechanism.departures or ("none",):
            console.print(f"  departure: {departure}", markup=False, highlight=False)
        for tool in mechanism.tools:
            console.print(f"  fast: {tool}", markup=False, highlight=False)
        options = [_option(option, entry) for option, entry in OPTIONS.get(name, {}).items()]
        if options:
            console.print(f"  options: {', '.join(options)}", markup=False, highlight=False)


def _option(name: str, option: Option) -> str:
    values = "|".join(option.choices) if option.choices else VALUES[option.kind]
    return f"{name}={values}"


def _ours(mechanism: str, config: str) -> str:
    try:
        return f"{vit_cost(mechanism, config, 224).base_parameters:,}"
    except KeyError:
        return "unknown"


def _published(mechanism: str, config: str) -> str:
    published = parameters_millions(mechanism, config)
    return "-" if published is None else f"{published:.1f}"
