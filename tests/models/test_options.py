"""The table of options against the classes that have them."""

from __future__ import annotations

import inspect

import pytest

from infsa_models.options import HOST_OPTIONS, OPTIONS, Option, options_of, parse_options
from infsa_models.registry import MECHANISMS, load_class

CONTRACT = {"embed_dim", "num_heads", "grid", "class_token", "device", "dtype"}
# For the golden files only: a case's resolution says how many tokens there are.
NOT_OFFERED = {("linformer", "seq_len")}


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("implementation", ["reference", "fast"])
def test_every_keyword_is_an_option_and_every_option_a_keyword(mechanism: str, implementation: str) -> None:
    layer_class = load_class(MECHANISMS[mechanism].implementations[implementation])
    keywords = {name for name in inspect.signature(layer_class).parameters if name not in CONTRACT}
    keywords -= {name for owner, name in NOT_OFFERED if owner == mechanism}
    # What a mixer needs of the host's options, the host hands on.
    assert keywords - HOST_OPTIONS.keys() == options_of(mechanism, implementation).keys() - HOST_OPTIONS.keys()


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_options_build(mechanism: str) -> None:
    for implementation in ("reference", "fast"):
        layer_class = load_class(MECHANISMS[mechanism].implementations[implementation])
        for name, option in options_of(mechanism, implementation).items():
            if name in HOST_OPTIONS:
                continue
            for text in option.choices or {bool: ("0", "1"), int: ("4",), float: ("0.5",)}[option.kind]:
                values = parse_options(mechanism, implementation, {name: text})
                layer_class(64, 4, grid=(4, 4), **values)


def test_all_mechanisms_are_listed() -> None:
    assert OPTIONS.keys() == MECHANISMS.keys()


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        (Option(kind=bool), "1", True),
        (Option(kind=bool), "0", False),
        (Option(kind=int), "49", 49),
        (Option(kind=float), "0.5", 0.5),
        (Option(kind=str, choices=("a", "b")), "b", "b"),
    ],
)
def test_values(option: Option, text: str, value: object) -> None:
    assert option.parse(text) == value
    assert type(option.parse(text)) is type(value)


@pytest.mark.parametrize(
    ("option", "text"),
    [
        (Option(kind=bool), "yes"),
        (Option(kind=bool), "True"),
        (Option(kind=int), "0"),
        (Option(kind=int), "-1"),
        (Option(kind=int), "1_000"),
        (Option(kind=int), "1" * 10),
        (Option(kind=float), "1"),
        (Option(kind=float), "0"),
        (Option(kind=float), "nan"),
        (Option(kind=float), "x"),
        (Option(kind=float), "0." + "1" * 40),
        (Option(kind=str, choices=("a",)), "b"),
    ],
)
def test_bad_values(option: Option, text: str) -> None:
    with pytest.raises(ValueError, match=r"is n"):
        option.parse(text)


def test_what_an_implementation_does_not_know() -> None:
    assert "backend" not in options_of("softmax", "reference")
    assert "backend" in options_of("softmax", "fast")
    assert options_of("package.module:Class", "fast") == dict(HOST_OPTIONS)
    assert options_of("package.module:Class", "reference").keys() == {"cls_prune"}
    with pytest.raises(KeyError):
        parse_options("softmax", "reference", {"backend": "flash"})
