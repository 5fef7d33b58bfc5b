from __future__ import annotations

import inspect
import re

import pytest

from infsa_bench import errors
from infsa_bench.errors import InfsaBenchError, SpecError, UnknownNameError


def test_every_error_stands_in_the_tree_of_the_docstring() -> None:
    defined = {name for name, item in inspect.getmembers(errors, inspect.isclass) if item.__module__ == errors.__name__}
    drawn = set(re.findall(r"\b[A-Z]\w+Error\b", errors.__doc__ or ""))
    assert defined == drawn
    assert all(issubclass(getattr(errors, name), InfsaBenchError) for name in defined)


def test_an_unknown_name_is_a_spec_error() -> None:
    assert issubclass(UnknownNameError, SpecError)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sofmax", "unknown mechanism 'sofmax'; did you mean 'softmax'?"),
        ("linear", "unknown mechanism 'linear'; did you mean 'infsa-linear'?"),
        ("xyz", "unknown mechanism 'xyz'; known: softmax, infsa-linear"),
        ("", "unknown mechanism ''; known: softmax, infsa-linear"),
        ("a\nb", r"unknown mechanism 'a\nb'; known: softmax, infsa-linear"),
    ],
)
def test_unknown_name_messages(name: str, message: str) -> None:
    assert str(UnknownNameError("mechanism", name, iter(("softmax", "infsa-linear")))) == message
