r"""The gradient of the nearest frame by the dense formula for declarative nodes, in PyTorch.

Let y(x) = argmin f(x, u) over u with h(u) = 0. Let A = D h (one row per constraint) and B = D_x D_u f. Let lambda be
the multipliers with lambda^T A = D_u f, and H the Hessian of the Lagrangian f - lambda^T h in u. Then

    D y = H^-1 A^T (A H^-1 A^T)^-1 A H^-1 B - H^-1 B                       (h does not depend on x, so C = 0)

Here u is the rotation U (d, r), x are the class means, and h are the r (r + 1) / 2 entries of U^T U - I on and above
the diagonal. T (r, K) is the template and delta the proximal weight. H maps a direction Z to Z M with
M = 2 T T^T + delta I - U^T D_u f, so H is the Kronecker product of I_d and M: one r x r block, repeated d times.

Reference: Gould, Hartley and Campbell, Deep declarative networks (2022), proposition on equality constraints; used for
the nearest simplex ETF by Markou, Ajanthan and Gould (2024). Written from the mathematics, not from their program.
"""

# PyTorch is in the extra `bench`, which may not be installed where the linter runs.
# pyright: reportMissingImports=false

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.problems import Problem

if TYPE_CHECKING:
    import torch


def needed_bytes(problem: Problem, itemsize: int = 4) -> int:
    """Return the bytes of A, H^-1 A^T and A H^-1 A^T, the arrays that the formula needs at least."""
    dim, rank = problem.previous.shape
    constraints = rank * (rank + 1) // 2
    return itemsize * (2 * constraints * dim * rank + constraints**2)


def dense_backward(
    problem: Problem, rotation: np.ndarray, *, dtype: str = "float32", whole_hessian: bool = False
) -> Callable[[], "torch.Tensor"]:
    """Return a function that computes the gradient of <G, U T> in the means, given the solution U.

    Args:
        problem: the problem that U solves.
        rotation: U, shape (d, r).
        dtype: name of the dtype of the computation.
        whole_hessian: build and factor H as one (d r) x (d r) matrix. False uses its blocks, which is much cheaper.
    """
    import torch

    arrays = (problem.means, problem.template, problem.previous, problem.cotangent, rotation)
    means, template, previous, cotangent, rotation_ = (
        torch.from_numpy(array).to(getattr(torch, dtype)) for array in arrays
    )
    dim, rank = previous.shape
    weight = problem.prox_weight

    def backward() -> "torch.Tensor":
        objective_gradient = 2 * (rotation_ @ template - means) @ template.T + weight * (rotation_ - previous)
        multipliers = rotation_.T @ objective_gradient
        identity = torch.eye(rank, dtype=means.dtype)
        block = 2 * template @ template.T + weight * identity - (multipliers + multipliers.T) / 2

        rows, columns = torch.triu_indices(rank, rank)
        numbers = torch.arange(len(rows))
        constraints = torch.zeros(len(rows), dim, rank, dtype=means.dtype)
        constraints[numbers, :, rows] += rotation_.T[columns]
        constraints[numbers, :, columns] += rotation_.T[rows]
        constraints = constraints.reshape(len(rows), dim * rank)  # A

        if whole_hessian:
            hessian = torch.kron(torch.eye(dim, dtype=means.dtype), block)
            factor = torch.linalg.cholesky(hessian)

            def solve(vectors: "torch.Tensor") -> "torch.Tensor":
                return torch.cholesky_solve(vectors.T, factor).T
        else:
            factor = torch.linalg.cholesky(block)

            def solve(vectors: "torch.Tensor") -> "torch.Tensor":
                return torch.cholesky_solve(vectors.reshape(-1, rank).T, factor).T.reshape(vectors.shape)

        solved = solve(constraints)  # (H^-1 A^T)^T
        gradient = solve((cotangent @ template.T).reshape(1, -1))  # (H^-1 v)^T, v the cotangent of U
        schur = torch.linalg.cholesky(solved @ constraints.T)
        share = torch.cholesky_solve(constraints @ gradient.T, schur)
        # B sends a change of the means to -2 (change) T^T.
        return 2 * (gradient - share.T @ solved).reshape(dim, rank) @ template

    return backward
