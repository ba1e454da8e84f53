"""Optimisers: AdamW, and Muon, which turns the gradient of a matrix into the nearest orthogonal matrix."""

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .networks.embedding import Labels
from .system.threads import parallel_map


def adamw(model: nn.Module, lr: float = 3e-3, betas: tuple[float, float] = (0.9, 0.99)) -> torch.optim.AdamW:
    """AdamW without weight decay (Loshchilov & Hutter 2019), fused, for all parameters of a model.

    lr      learning rate, which `train` sets anew at each step
    betas   memory of the gradient and of its square, shares in [0, 1)
    """
    return torch.optim.AdamW(model.parameters(), lr=lr, betas=betas, weight_decay=0.0, fused=True)


def muon(model: nn.Module, lr: float = 3e-3, betas: tuple[float, float] = (0.9, 0.99)) -> "Muon":
    """Muon for the weights of a model's layers (Jordan et al. 2024), AdamW for its biases, norms and tables of labels.

    lr      learning rate of both, which `train` sets anew at each step
    betas   of AdamW: memory of the gradient and of its square, shares in [0, 1)
    """
    tables = {id(p) for module in model.modules() if isinstance(module, Labels) for p in module.parameters()}
    matrices = [p for p in model.parameters() if p.ndim > 1 and id(p) not in tables]
    matrix_ids = {id(p) for p in matrices}
    return Muon(matrices, [p for p in model.parameters() if id(p) not in matrix_ids], lr, betas)


OPTIMIZERS: dict[str, Callable[[nn.Module, float, tuple[float, float]], torch.optim.Optimizer]] = {
    "adamw": adamw,
    "muon": muon,
}
"""name -> (model, learning rate, betas) -> optimiser."""


def orthogonalized(matrices: Tensor, steps: int = 5) -> Tensor:
    """About U V^T for each matrix U S V^T of a stack `[N, rows, columns]`: singular values go to roughly 0.7 .. 1.2.

    A Newton-Schulz iteration whose polynomial is steepest at 0 (Jordan et al. 2024, "Muon"): x <- p(x x^T) x. All that
    it does to x is a product of polynomials of x x^T, which is small where x is wide, so that x itself is needed at the
    two ends alone.
    """
    a, b, c = 3.4445, -4.7750, 2.0315

    def polynomial(gram: Tensor) -> Tensor:
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal(dim1=-2, dim2=-1).add_(a)
        return p

    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    gram = x @ x.mT
    product = p = polynomial(gram)
    for _ in range(steps - 1):
        gram = p @ gram @ p
        p = polynomial(gram)
        product = p @ product
    x = product @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Momentum whose every update is orthogonalised (Jordan et al. 2024), for weights of two dimensions and more.

    matrices  a convolution's kernel `[out, in, h, w]` counts as a matrix `[out, in h w]`
    others    parameters left to AdamW, at the same learning rate
    lr        an update of a matrix has the size that AdamW's has (Liu et al. 2025, eq. 4), so that one rate serves both
    betas     of AdamW
    momentum  of the matrices, Nesterov's
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        others: list[nn.Parameter],
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        momentum: float = 0.95,
    ):
        super().__init__([{"params": matrices}, {"params": others}], {"lr": lr})
        self.momentum = momentum
        self.adamw = torch.optim.AdamW([self.param_groups[1]], lr=lr, betas=betas, weight_decay=0.0, fused=True)
        self.adamw.state = self.state  # one record of both, for checkpoints

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyrefly: ignore[bad-override]  torch's closures have no use here
        """One update of every parameter that has a gradient."""
        of_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                if "momentum" not in self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)
                of_shape.setdefault(parameter.flatten(1).shape, []).append(parameter)
        alike = sorted(of_shape.values(), key=cost, reverse=True)  # the dearest first, so that all cores end together
        if alike:
            deque(parallel_map(self.update, alike, alike[0][0].device), maxlen=0)
        self.adamw.step()

    @torch.no_grad()
    def update(self, parameters: list[nn.Parameter]) -> None:
        """Update weights of one shape, which go through the products together."""
        ahead = []
        for parameter in parameters:
            gradient, momentum = parameter.grad, self.state[parameter]["momentum"]
            assert gradient is not None
            momentum.lerp_(gradient, 1 - self.momentum)
            ahead.append(gradient.lerp(momentum, self.momentum).flatten(1))
        directions = orthogonalized(torch.stack(ahead))
        directions *= 0.2 * max(directions.shape[1:]) ** 0.5 * self.param_groups[0]["lr"]
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.sub_(direction.view(parameter.shape))


def cost(parameters: list[nn.Parameter]) -> int:
    """About the multiplications that the update of weights of one shape takes."""
    rows, columns = parameters[0].flatten(1).shape
    return len(parameters) * min(rows, columns) ** 2 * (10 * min(rows, columns) + max(rows, columns))
