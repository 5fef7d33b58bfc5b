"""Tokens in pieces: which, and that nothing is lost between them."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from infsa_models import pieces
from infsa_models.patches import patches_of, tokens_of
from infsa_models.pieces import joined, made_again, parts_of, row_pieces, token_pieces


@pytest.fixture(autouse=True)
def _ten_tokens_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_TOKENS", 10)


@pytest.mark.parametrize(
    ("batch", "tokens", "count"), [(1, 1, 1), (1, 10, 1), (1, 11, 2), (2, 10, 2), (3, 37, 12), (50, 2, 2)]
)
def test_token_pieces(batch: int, tokens: int, count: int) -> None:
    found = token_pieces(batch, tokens)
    assert len(found) == count
    covered = [index for piece in found for index in range(piece.start, piece.stop)]
    assert covered == list(range(tokens))
    assert max(batch * (piece.stop - piece.start) for piece in found) <= 10 + batch


@pytest.mark.parametrize(("batch", "grid", "count"), [(1, (2, 5), 1), (1, (3, 5), 2), (1, (4, 20), 4), (2, (6, 5), 6)])
def test_row_pieces_have_a_row_at_least(batch: int, grid: tuple[int, int], count: int) -> None:
    found = row_pieces(batch, grid)
    assert len(found) == count
    assert [row for piece in found for row in range(piece.start, piece.stop)] == list(range(grid[0]))


@pytest.mark.parametrize("class_tokens", [0, 1])
def test_tokens_of_rows_and_patches_of_tokens(class_tokens: int) -> None:
    grid = (6, 4)
    rows = row_pieces(1, grid)
    slices = [tokens_of(piece, grid, class_tokens) for piece in rows]
    assert slices[0].start == 0
    assert slices[-1].stop == 24 + class_tokens
    assert all(first.stop == second.start for first, second in itertools.pairwise(slices))
    assert [patches_of(piece, class_tokens) for piece in slices] == [tokens_of(piece, grid, 0) for piece in rows]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("tokens", [7, 37])
def test_joined_pieces_are_the_whole(tokens: int, grad: bool) -> None:
    x = torch.randn(1, tokens, 3, dtype=torch.float64, requires_grad=True)
    slices = token_pieces(1, tokens)
    parts = parts_of(x, slices)
    with torch.set_grad_enabled(grad):
        result = joined(lambda index: parts[index].sin(), slices)
    assert torch.equal(result, x.sin())
    if grad:
        (gradient,) = torch.autograd.grad(result.sum(), x)
        torch.testing.assert_close(gradient, x.cos())


def test_several_pieces_are_made_again_where_a_gradient_is_needed() -> None:
    made: list[int] = []
    x = torch.randn(1, 37, 3, requires_grad=True)
    slices = token_pieces(1, 37)
    parts = parts_of(x, slices)

    def make(index: int) -> Tensor:
        made.append(index)
        return parts[index].sin()

    joined(make, slices).sum().backward()
    assert sorted(made) == [0, 0, 1, 1, 2, 2, 3, 3]
    made.clear()
    with torch.no_grad():
        joined(make, slices)
        made_again(make, 0)
    assert made == [0, 1, 2, 3, 0]
