"""``--option``: what is understood, what is refused, and which cases come of it."""

from __future__ import annotations

import pytest

from infsa_bench.commands.options import SweepRequest, sweep_axes
from infsa_bench.errors import SpecError, UnknownNameError
from infsa_bench.spec import OptionAxis, option_choices, parse_options

BOTH = ("reference", "fast")


def cells(*options: str, mechanisms: str = "softmax,infsa-linear", impl: str = "reference,fast") -> list[str]:
    request = SweepRequest(res="224", mechanisms=mechanisms, impl=impl, option=options)
    return [
        case.cell.removeprefix("infsa/").replace("/4L-64H/r224/b1/fp32/infer/eager", "")
        for case in sweep_axes(request, "cpu", 1).cases("cpu")
    ]


def test_without_options() -> None:
    assert cells() == ["softmax.reference", "softmax.fast", "infsa-linear.reference", "infsa-linear.fast"]


def test_values_are_an_axis_of_those_that_know_the_option() -> None:
    assert cells("backend=flash,math") == [
        "softmax.reference",
        "softmax.fast/backend=flash",
        "softmax.fast/backend=math",
        "infsa-linear.reference",
        "infsa-linear.fast",
    ]


def test_an_option_of_the_host_is_everybodys() -> None:
    assert cells("cls_prune=0,1", impl="fast") == [
        "softmax.fast/cls_prune=0",
        "softmax.fast/cls_prune=1",
        "infsa-linear.fast/cls_prune=0",
        "infsa-linear.fast/cls_prune=1",
    ]


def test_an_option_of_one_mechanism() -> None:
    assert cells("infsa-linear.cls_prune=1", impl="fast") == ["softmax.fast", "infsa-linear.fast/cls_prune=1"]


def test_several_options_multiply_in_alphabetical_order() -> None:
    assert cells("tie_qk=0", "rho=0.5,0.9", mechanisms="infsa-linear", impl="fast") == [
        "infsa-linear.fast/rho=0.5,tie_qk=0",
        "infsa-linear.fast/rho=0.9,tie_qk=0",
    ]


@pytest.mark.parametrize(
    "text", ["backend", "=flash", "softmax.=flash", ".backend=flash", "backend=", "backend=flash,"]
)
def test_what_is_no_option(text: str) -> None:
    with pytest.raises(SpecError):
        parse_options([text], ["softmax"], BOTH)


@pytest.mark.parametrize("text", ["backend=cuda", "cls_prune=yes"])
def test_values_that_an_option_cannot_have(text: str) -> None:
    with pytest.raises(SpecError, match=r"none of|neither 0 nor 1"):
        parse_options([text], ["softmax"], BOTH)


def test_unknown_names() -> None:
    with pytest.raises(UnknownNameError, match="backend"):
        parse_options(["bakend=flash"], ["softmax"], BOTH)
    with pytest.raises(UnknownNameError):
        parse_options(["backend=flash"], ["softmax"], ["reference"])
    with pytest.raises(UnknownNameError):
        parse_options(["tie_qk=0"], ["softmax"], BOTH)
    with pytest.raises(UnknownNameError):
        parse_options(["linformer.k=16"], ["softmax"], BOTH)


def test_the_same_option_twice() -> None:
    with pytest.raises(SpecError, match="given twice"):
        parse_options(["backend=flash", "softmax.backend=math"], ["softmax"], BOTH)


def test_mechanisms_from_elsewhere_have_the_options_of_the_host() -> None:
    axes = parse_options(["cls_prune=1"], ["package.module:Class"], ["reference"])
    assert axes == (OptionAxis(mechanism=None, name="cls_prune", values=("1",)),)
    assert option_choices(axes, "package.module:Class", "reference") == [(("cls_prune", "1"),)]


@pytest.mark.parametrize(
    ("impl", "device_type", "expected"),
    [
        (None, "cpu", ["softmax.reference", "softmax.fast", "package.module:Class.reference"]),
        # One from elsewhere has no fast implementation: it runs as it is.
        (None, "cuda", ["softmax.fast", "package.module:Class.reference"]),
        ("reference", "cuda", ["softmax.reference", "package.module:Class.reference"]),
        ("fast", "cpu", ["softmax.fast"]),
    ],
)
def test_defaults_of_a_device(impl: str | None, device_type: str, expected: list[str]) -> None:
    request = SweepRequest(res="224", mechanisms="softmax,package.module:Class", config="4L-64H", impl=impl)
    cases = sweep_axes(request, device_type, 1).cases(device_type)
    assert [f"{case.mechanism}.{case.implementation}" for case in cases] == expected
