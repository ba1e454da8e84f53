"""The optimizers AdamW and Muon. Muon replaces the gradient of a matrix by the nearest orthogonal matrix."""

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .checks import check_number, check_type
from .networks.embedding import Labels
from .system.threads import parallel_map


def check_settings(model: nn.Module, lr: float, betas: tuple[float, float]) -> None:
    """Raise TypeError or ValueError for a model, lr `[0, inf)` or betas `[0, 1)` that an optimizer can't have."""
    check_type("model", model, nn.Module, "a module such as a Denoiser")
    check_number("lr", lr, 0, ends="[)")
    for beta in betas:
        check_number("betas", beta, 0, 1, "[)")


def adamw(model: nn.Module, lr: float = 3e-3, betas: tuple[float, float] = (0.9, 0.99)) -> torch.optim.AdamW:
    """Fused AdamW without weight decay for all parameters of a model (Loshchilov & Hutter 2019).

    lr      learning rate; `train` sets it in each step
    betas   decay of the averages of the gradient and of its square, in [0, 1)

    Raises TypeError unless `model` is a module, and ValueError for another lr or betas.
    """
    check_settings(model, lr, betas)
    return torch.optim.AdamW(model.parameters(), lr=lr, betas=betas, weight_decay=0.0, fused=True)


def muon(model: nn.Module, lr: float = 3e-3, betas: tuple[float, float] = (0.9, 0.99)) -> "Muon":
    """Muon for the weights of convolutions and linear layers, AdamW for biases, norms and label embeddings.

    Jordan et al. 2024.

    lr      learning rate of both; `train` sets it in each step
    betas   of AdamW: decay of the averages of the gradient and of its square, in [0, 1)

    Raises TypeError unless `model` is a module, and ValueError for another lr or betas.
    """
    check_settings(model, lr, betas)
    tables = {id(p) for module in model.modules() if isinstance(module, Labels) for p in module.parameters()}
    matrices = [p for p in model.parameters() if p.ndim > 1 and id(p) not in tables]
    matrix_ids = {id(p) for p in matrices}
    return Muon(matrices, [p for p in model.parameters() if id(p) not in matrix_ids], lr, betas)


OPTIMIZERS: dict[str, Callable[[nn.Module, float, tuple[float, float]], torch.optim.Optimizer]] = {
    "adamw": adamw,
    "muon": muon,
}
"""name -> (model, learning rate, betas) -> optimizer."""


def orthogonalized(matrices: Tensor, steps: int = 5) -> Tensor:
    """Approximately U V^T for each matrix U S V^T of a stack `[N, rows, columns]`.

    The singular values of the result lie between about 0.7 and 1.2 where S is at least 0.003 of its norm; smaller ones
    become 300 to 500 times as large. It is a Newton-Schulz iteration x <- p(x x^T) x with a polynomial that is steep at
    0 (Jordan et al. 2024). The factors p(x x^T) are multiplied before x: for a wide
    x they are much smaller than x.
    """
    a, b, c = 3.4445, -4.7750, 2.0315

    def polynomial(gram: Tensor) -> Tensor:
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal(dim1=-2, dim2=-1).add_(a)
        return p

    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else matrices.mT
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)
    gram = x @ x.mT
    product = p = polynomial(gram)
    for _ in range(steps - 1):
        gram = p @ gram @ p
        p = polynomial(gram)
        product = p @ product
    x = product @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalized updates for weights of at least two dimensions (Jordan et al. 2024).

    matrices  parameters that Muon updates; a convolution kernel `[out, in, h, w]` counts as a matrix `[out, in h w]`
    others    parameters that AdamW updates
    lr        learning rate of both: Muon's updates are scaled to the size of AdamW's (Liu et al. 2025, eq. 4)
    betas     of AdamW
    momentum  Nesterov momentum of the matrices
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        others: list[nn.Parameter],
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        momentum: float = 0.95,
    ):
        check_number("momentum", momentum, 0, 1, "[)")
        of_adamw = {"params": others, "betas": betas, "weight_decay": 0.0, "fused": True}
        super().__init__([{"params": matrices, "momentum": momentum}, of_adamw], {"lr": lr})
        self._share_state()

    def _share_state(self) -> None:
        """Let AdamW update the second group, with the state and the settings of this optimizer."""
        self.adamw = torch.optim.AdamW([self.param_groups[1]])
        self.adamw.state = self.state  # checkpoints save one state for both

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of another optimizer, by `load_state_dict`, copying or unpickling."""
        super().__setstate__(state)
        self.param_groups[0].setdefault("momentum", 0.95)  # it was not saved in the first versions
        self._share_state()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add one of the two groups. Raises ValueError for a third one, which would not be updated."""
        if len(self.param_groups) == 2:
            raise ValueError("Muon has two groups of weights, matrices and others: make a new one for all weights")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyrefly: ignore[bad-override]
        """Update all parameters that have a gradient. Returns the result of `closure`, which computes the gradients."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                if "momentum" not in self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)
                by_shape.setdefault(parameter.flatten(1).shape, []).append(parameter)
        groups = sorted(by_shape.values(), key=cost, reverse=True)  # the slowest first: all threads then end together
        if groups:
            deque(parallel_map(self.update, groups, groups[0][0].device), maxlen=0)
        self.adamw.step()
        return loss

    @torch.no_grad()
    def update(self, parameters: list[nn.Parameter]) -> None:
        """Update weights of one shape, stacked for the matrix products."""
        group, ahead = self.param_groups[0], []
        for parameter in parameters:
            gradient, momentum = parameter.grad, self.state[parameter]["momentum"]
            assert gradient is not None
            momentum.lerp_(gradient, 1 - group["momentum"])
            ahead.append(gradient.lerp(momentum, group["momentum"]).flatten(1))
        directions = orthogonalized(torch.stack(ahead))
        directions *= 0.2 * max(directions.shape[1:]) ** 0.5 * group["lr"]
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.sub_(direction.view(parameter.shape))


def cost(parameters: list[nn.Parameter]) -> int:
    """Approximate number of multiplications in the update of weights of one shape."""
    rows, columns = parameters[0].flatten(1).shape
    return len(parameters) * min(rows, columns) ** 2 * (10 * min(rows, columns) + max(rows, columns))
