"""Augmentation: transformed images as further training data, and the loss that trains on them.

A network that is conditioned on the augmentation generates samples of the augmentation that it is asked for, so that
the others do not leak into the samples (Karras et al. 2022, appendix F.2).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .checks import check_callable, check_integer, check_type
from .denoiser import Denoiser, weights_of
from .losses import Loss
from .networks.embedding import check_null, label_embedding
from .randomness import Draws

Augmentation = Callable[[Tensor], Tensor]
"""Images `[..., H, W]` -> transformed images of the same shape."""


def identity(x: Tensor) -> Tensor:
    """x itself, of any shape."""
    return x


def mirror(x: Tensor) -> Tensor:
    """Flip the images x `[..., H, W]` horizontally."""
    return x.flip(-1)


def symmetries(square: bool) -> list[Augmentation]:
    """The 8 symmetries of a square, or the 4 of another rectangle, for images `[..., H, W]`; the identity is first.

    Raises TypeError unless `square` is True or False.
    """
    check_type("square", square, bool, "True or False")
    turns = (0, 1, 2, 3) if square else (0, 2)
    return [lambda x, k=k, f=f: torch.rot90(f(x), k, (-2, -1)) for f in (identity, mirror) for k in turns]


AUGMENTATIONS: dict[str, Callable[[bool], list[Augmentation]]] = {
    "none": lambda square: [identity],
    "mirror": lambda square: [identity, mirror],
    "symmetries": symmetries,
}
"""name -> (is the image square?) -> augmentations, the identity first."""


def augmented(loss: Loss, augmentations: Sequence[Augmentation], null: int, conditioned: bool = True) -> Loss:
    """The same loss under a random augmentation of each sample, all equally likely (Karras et al. 2022, appendix F.2).

    loss           (denoiser, x0, cond, draws) -> `[B]`
    augmentations  functions of images `[..., H, W]`; the first one is the identity
    null           the label that means "no label": the number of classes
    conditioned    whether the label also holds the number of the augmentation, for a network with
                   `Labels(classes, width, len(augmentations))`

    Raises ValueError for no augmentation; in training, if the network has other numbers of classes or augmentations, or
    if an augmentation changes the shape of the images.
    """
    check_callable("loss", loss, "a function such as sd.denoising_loss")
    check_integer("null", null, 0)
    check_integer("the number of augmentations", len(augmentations), 1)
    for augmentation in augmentations:
        check_callable("augmentations", augmentation, "functions such as those of sd.symmetries(square=True)")

    def check_network(network: object, cond: Tensor | None) -> None:
        embedded = label_embedding(network)
        check_null(network, null)
        if cond is not None and not null:
            raise ValueError("`null` is 0, but the images have labels: pass the number of classes as `null`")
        if conditioned and embedded is not None and embedded.augmentations != len(augmentations):
            raise ValueError(
                f"the network is conditioned on {embedded.augmentations} augmentations and `augmentations` has "
                f"{len(augmentations)}: build it with augmentations={len(augmentations)}, or pass conditioned=False"
            )

    def augmented_loss(denoiser: Denoiser, x0: Tensor, cond: Tensor | None, draws: Draws) -> Tensor:
        check_network(weights_of(denoiser), cond)
        chosen = (draws.uniform("view") * len(augmentations)).long().to(x0.device)  # [B]
        transformed = torch.empty_like(x0)  # keeps the memory format of x0
        for number, augmentation in enumerate(augmentations):
            images = x0[chosen == number]
            result = augmentation(images)
            if result.shape != images.shape:
                raise ValueError(
                    f"augmentation {number} makes {tuple(result.shape[1:])} of images {tuple(images.shape[1:])}: use "
                    f"one that keeps the shape, such as those of sd.symmetries(square=False)"
                )
            transformed[chosen == number] = result
        if conditioned:
            cond = chosen * (null + 1) + (null if cond is None else cond)
        return loss(denoiser, transformed, cond, draws)

    return augmented_loss
