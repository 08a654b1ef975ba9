"""Squared length of each instance's gradient of a parameter, from a module's inputs and the gradient of its output.

Shapes: a, x [rows, places, in]; d [rows, places, out]; token ids [rows, places]. Results are fp64 of shape [rows].
Products are taken in the precision of the pass and added up in fp64. No temporary tensor has more than
`NUMBERS_AT_ONCE` numbers, but for what `tied_products` says.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

# 16 MB in fp32: a few instances at once where they are small, a part of one where it is large.
NUMBERS_AT_ONCE = 2**22
# Of sum_t |d_t a_t'|^2: with less left of it, rounding in a sum over pairs comes near 1e-5 of the result.
LEAST_OF_PARTS = 0.01


def linear_squares(a: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """|sum_t d_t a_t'|^2: of the gradient itself, or of all pairs of places, whichever takes fewer multiplications.

    Where the parts of an instance cancel, a sum over pairs keeps the rounding of its terms; those are taken again.
    """
    places, size_in, size_out = a.shape[1], a.shape[2], d.shape[2]
    if places * (size_in + size_out) >= size_in * size_out:
        return squares_by_gradient(a, d)
    squares = squares_by_pairs(a, d)
    parts_alone = torch.linalg.vector_norm(a, dim=2) * torch.linalg.vector_norm(d, dim=2)
    cancelling = squares < LEAST_OF_PARTS * parts_alone.double().square().sum(dim=1)
    if cancelling.any():
        squares[cancelling] = squares_by_gradient(a[cancelling], d[cancelling])
    return squares


def squares_by_gradient(a: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """The gradients of instances one after the other, and the length of each: places * in * out multiplications."""
    squares = torch.zeros(len(a), dtype=torch.float64, device=a.device)
    for rows, outputs in parts(len(a), d.shape[2], a.shape[2]):
        gradients = torch.bmm(d[rows, :, outputs].transpose(1, 2), a[rows])
        # Norms of lines first: one over all numbers in fp32 is off by 1e-5.
        squares[rows] += torch.linalg.vector_norm(gradients, dim=2).double().square().sum(dim=1)
    return squares


def squares_by_pairs(a: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """sum_tu (a_t . a_u) (d_t . d_u): places^2 * (in + out) multiplications."""
    squares = torch.zeros(len(a), dtype=torch.float64, device=a.device)
    for rows, places in parts(len(a), a.shape[1], 2 * a.shape[1]):
        inputs = torch.bmm(a[rows, places], a[rows].transpose(1, 2))
        outputs = torch.bmm(d[rows, places], d[rows].transpose(1, 2))
        squares[rows] += (inputs * outputs).sum(dim=(1, 2), dtype=torch.float64)
    return squares


def bias_squares(d: torch.Tensor) -> torch.Tensor:
    """|sum_t d_t|^2."""
    return torch.linalg.vector_norm(d.sum(dim=1), dim=1).double().square()


def norm_squares(x: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """|sum_t d_t * x_t|^2."""
    return bias_squares(x * d)


def embedding_squares(token_ids: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """Squared length over all tokens of an instance of what stands at each of them together."""
    vocabulary = int(token_ids.max()) + 1
    rows = torch.arange(len(token_ids), device=token_ids.device)[:, None]
    distinct, where = (token_ids + rows * vocabulary).unique(return_inverse=True)
    together = d.new_zeros(len(distinct), d.shape[2]).index_add_(0, where.flatten(), d.flatten(0, 1))
    of_each = torch.linalg.vector_norm(together, dim=1).double().square()
    return of_each.new_zeros(len(token_ids)).index_add_(0, distinct // vocabulary, of_each)


def output_gradients_at(token_ids: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """Of the gradients of logits, those of the tokens that the instance reads: [rows, places, places read]."""
    return d.gather(2, token_ids[:, None, :].expand(-1, d.shape[1], -1))


def tied_products(a: torch.Tensor, at_tokens: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """<E, L> of one weight's gradients, as embedding and as output projection; [rows, places, places] twice.

    E has d_t at token t and L has sum_u at_tokens[u, t] a_u there, so that it is sum_tu (d_t . a_u) at_tokens[u, t].

    Args:
        a: what the output projection read. at_tokens: `output_gradients_at`. d: gradient of the embedding's output.
    """
    return (torch.bmm(a, d.transpose(1, 2)) * at_tokens).sum(dim=(1, 2), dtype=torch.float64)


def parts(num_rows: int, length: int, numbers: int) -> Iterator[tuple[slice, slice]]:
    """Cut [rows, length, numbers] along rows, and rows along their length, into parts of at most NUMBERS_AT_ONCE."""
    rows_at_once = max(1, NUMBERS_AT_ONCE // (length * numbers))
    length_at_once = max(1, min(length, NUMBERS_AT_ONCE // numbers))
    for row in range(0, num_rows, rows_at_once):
        for start in range(0, length, length_at_once):
            yield slice(row, row + rows_at_once), slice(start, start + length_at_once)
