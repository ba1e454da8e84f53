"""Augmentations: the views of an image that are as good as the image, and the loss that trains on them.

A network that is told which view it sees draws only the view that it is asked for: nothing leaks into the samples
(Karras et al. 2022, appendix F.2).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .denoiser import Denoiser
from .losses import Loss
from .randomness import Draws

Augmentation = Callable[[Tensor], Tensor]
"""Images `[..., H, W]` -> the same images seen otherwise, of the same shape."""


def identity(x: Tensor) -> Tensor:
    """x as it is, of any shape."""
    return x


def mirror(x: Tensor) -> Tensor:
    """The images x `[..., H, W]` with left and right exchanged."""
    return x.flip(-1)


def symmetries(square: bool) -> list[Augmentation]:
    """The symmetries of a rectangle of pixels `[..., H, W]`, the identity first: 8 if it is square, else 4."""
    turns = (0, 1, 2, 3) if square else (0, 2)
    return [lambda x, k=k, f=f: torch.rot90(f(x), k, (-2, -1)) for f in (identity, mirror) for k in turns]


AUGMENTATIONS: dict[str, Callable[[bool], list[Augmentation]]] = {
    "none": lambda square: [identity],
    "mirror": lambda square: [identity, mirror],
    "symmetries": symmetries,
}
"""name -> (is the image square?) -> its views, the identity first."""


def augmented(loss: Loss, views: Sequence[Augmentation], null: int, told: bool = True) -> Loss:
    """The same loss on a random view of each sample, the views equally likely (Karras et al. 2022, appendix F.2).

    loss   (denoiser, x0, cond, draws) -> `[B]`
    views  functions of images `[..., H, W]`; the first one is the identity
    null   the label that means "no label": the number of classes
    told   whether the label also names the view, for a network with `Labels(classes, width, views=len(views))`
    """

    def of_view(denoiser: Denoiser, x0: Tensor, cond: Tensor | None, draws: Draws) -> Tensor:
        view = (draws.uniform("view") * len(views)).long().to(x0.device)  # [B]
        seen = torch.empty_like(x0)  # in x0's memory format
        for number, look in enumerate(views):
            seen[view == number] = look(x0[view == number])
        if told:
            cond = view * (null + 1) + (null if cond is None else cond)
        return loss(denoiser, seen, cond, draws)

    return of_view
