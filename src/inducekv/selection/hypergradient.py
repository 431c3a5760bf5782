"""dJ/dw of the outer objective, with phi held fixed or followed through the inner problem."""

import torch
from jaxtyping import Float
from torch import Tensor

from inducekv.selection.objective import Batch, Objective, Terms


def first_order(
    objective: Objective,
    weights: Float[Tensor, " entries"],
    phi: Float[Tensor, " parameters"],
    outer_batch: Batch | None = None,
    inner_batch: Batch | None = None,
) -> tuple[Float[Tensor, " entries"], Terms]:
    """The partial derivative of J in w at the fitted phi (specs/inducekv.md, section 3; the default).

    Returns:
        `[entries]` gradient, and J's terms. `inner_batch` is not used.
    """
    leaf = weights.detach().requires_grad_()
    terms = objective.outer(leaf, phi.detach(), outer_batch)
    (gradient,) = torch.autograd.grad(terms.total, leaf)
    return gradient, terms


def implicit(
    objective: Objective,
    weights: Float[Tensor, " entries"],
    phi: Float[Tensor, " parameters"],
    outer_batch: Batch | None = None,
    inner_batch: Batch | None = None,
    *,
    damping: float = 1e-4,
) -> tuple[Float[Tensor, " entries"], Terms]:
    """The total derivative dJ/dw = J_w - J_phi (G_phiphi)^-1 G_phiw at a minimum phi of G (specs, section 3).

    phi has one number a layer and one more, so the Hessian is formed exactly, row by row. CHOICE: away from a minimum
    it may be indefinite or singular; eigenvalues are replaced by their magnitude, at least `damping` of the largest, so
    that the correction stays a descent direction of bounded size.

    Returns:
        `[entries]` gradient, and J's terms.
    """
    leaf, parameters = weights.detach().requires_grad_(), phi.detach().requires_grad_()
    terms = objective.outer(leaf, parameters, outer_batch)
    by_weights, by_phi = torch.autograd.grad(terms.total, (leaf, parameters), allow_unused=True)
    if by_phi is None or not bool(by_phi.any()):
        return by_weights, terms
    loss = objective.inner(leaf, parameters, inner_batch)
    (slope,) = torch.autograd.grad(loss, parameters, create_graph=True)
    hessian = torch.stack(
        [torch.autograd.grad(component, parameters, retain_graph=True)[0] for component in slope]
    ).double()
    eigenvalues, eigenvectors = torch.linalg.eigh((hessian + hessian.T) / 2)
    magnitudes = eigenvalues.abs()
    floor = (damping * magnitudes.max()).clamp_min(torch.finfo(torch.float64).tiny)
    direction = eigenvectors @ ((eigenvectors.T @ by_phi.double()) / magnitudes.clamp_min(floor))
    (mixed,) = torch.autograd.grad(slope @ direction.to(slope.dtype), leaf, allow_unused=True)
    return (by_weights if mixed is None else by_weights - mixed), terms


HYPERGRADIENTS = {"first_order": first_order, "implicit": implicit}
"""The two forms by their name in the configuration."""
