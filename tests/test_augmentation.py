"""Augmentations are symmetries, equally frequent, and the network may be conditioned on them."""

import pytest
import torch

from simple_diffusion.augmentation import AUGMENTATIONS, augmented, symmetries
from simple_diffusion.guidance import drop_labels, unlabelled
from simple_diffusion.networks.embedding import Labels, sinusoid
from simple_diffusion.networks.unet import UNet
from simple_diffusion.randomness import Draws

NULL = 3
X = torch.arange(16.0).view(1, 4, 4)  # all pixels differ, so that each symmetry gives another image


def inputs_of_loss(augmentations, conditioned=True, n=4000, cond=None, step=0, wrap=lambda loss: loss):
    """The images and labels that the loss gets."""
    given = {}

    def loss(denoiser, x0, cond, draws):
        given.update(x0=x0, cond=cond)
        return x0.flatten(1).mean(1)

    x0 = X.expand(n, 1, 4, 4)
    wrap(augmented(loss, augmentations, NULL, conditioned))(None, x0, cond, Draws(0, step, range(n), total=n))
    return given["x0"], given["cond"]


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("square", [True, False])
def test_the_first_augmentation_is_the_identity_and_all_keep_the_shape(name, square):
    augmentations = AUGMENTATIONS[name](square)
    x = torch.rand(2, 3, 5, 5 if square else 7)
    assert torch.equal(augmentations[0](x), x)
    assert all(augmentation(x).shape == x.shape for augmentation in augmentations)
    assert all(
        torch.equal(augmentation(x).flatten().sort().values, x.flatten().sort().values)
        for augmentation in augmentations
    )


def test_the_symmetries_of_the_square_are_its_group():
    augmentations = symmetries(True)
    images = {tuple(augmentation(X).flatten().tolist()) for augmentation in augmentations}
    assert len(images) == 8
    for f in augmentations:  # closed under composition
        assert {tuple(g(f(X)).flatten().tolist()) for g in augmentations} == images


def test_the_rectangle_keeps_its_sides():
    x = torch.arange(6.0).view(1, 2, 3)
    assert len({tuple(augmentation(x).flatten().tolist()) for augmentation in symmetries(False)}) == 4


@pytest.mark.parametrize("labeled", [True, False])
def test_augmentations_are_equally_frequent_and_the_label_holds_their_number(labeled):
    augmentations = symmetries(True)
    label = torch.arange(4000) % (NULL + 1)
    x0, cond = inputs_of_loss(augmentations, cond=label if labeled else None)
    augmentation = cond // (NULL + 1)
    assert torch.equal(cond % (NULL + 1), label if labeled else torch.full((4000,), NULL))
    for number, transform in enumerate(augmentations):
        assert torch.equal(x0[augmentation == number], transform(X).expand_as(x0[augmentation == number]))
    # 4,000 samples of 8: 500 each, with standard deviation 21
    assert all(abs((augmentation == number).sum() - 500) < 5 * 21 for number in range(8))


def test_unconditioned_labels_stay_the_same():
    label = torch.arange(4000) % NULL
    x0, cond = inputs_of_loss(symmetries(True), conditioned=False, cond=label)
    assert torch.equal(cond, label)
    assert len({tuple(image.flatten().tolist()) for image in x0}) == 8


def test_augmentations_depend_on_seed_step_and_sample_alone():
    augmentations = symmetries(True)
    (a, _), (b, _), (c, _) = (
        inputs_of_loss(augmentations),
        inputs_of_loss(augmentations),
        inputs_of_loss(augmentations, step=1),
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    few, _ = inputs_of_loss(augmentations, n=10)
    assert torch.equal(few, a[:10])


def test_a_dropped_label_keeps_its_augmentation():
    label = torch.arange(4000) % NULL
    _, cond = inputs_of_loss(symmetries(True), cond=label, wrap=lambda loss: drop_labels(loss, NULL, p=1.0))
    assert (cond % (NULL + 1) == NULL).all()
    assert (cond // (NULL + 1)).unique().tolist() == list(range(8))
    assert torch.equal(unlabelled(torch.tensor([0, NULL, 1 + 2 * (NULL + 1)]), NULL), torch.tensor([3, 3, 3 + 8]))


def test_the_memory_format_is_kept():
    x0 = torch.rand(4, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    given = []
    loss = augmented(lambda d, x, c, r: given.append(x), symmetries(True), NULL)
    loss(None, x0, None, Draws(0, 0, range(4), total=4))
    assert given[0].is_contiguous(memory_format=torch.channels_last)


# --- labels in the network -------------------------------------------------------------------------------------------


def test_no_label_and_no_augmentation_are_the_zero_vector():
    labels = Labels(NULL, 6, augmentations=4)
    assert labels(None) == 0
    assert torch.equal(labels(torch.tensor([NULL])), torch.zeros(1, 6))
    label, augmentation = labels(torch.tensor([1])), labels(torch.tensor([NULL + 2 * (NULL + 1)]))
    assert label.any()
    assert augmentation.any()
    torch.testing.assert_close(labels(torch.tensor([1 + 2 * (NULL + 1)])), label + augmentation)
    assert len({tuple(labels(torch.tensor([c])).flatten().tolist()) for c in range(4 * (NULL + 1))}) == 4 * (NULL + 1)


def test_a_label_out_of_range_is_an_error():
    plain, augmented_labels = Labels(NULL, 6), Labels(NULL, 6, augmentations=2)
    for labels, wrong in ((plain, NULL + 1), (plain, -1), (augmented_labels, 2 * (NULL + 1))):
        with pytest.raises(ValueError, match="the labels of this network are from 0 to"):
            labels(torch.tensor([0, wrong]))


def test_without_classes_the_augmentation_alone_is_embedded():
    labels = Labels(0, 6, augmentations=3)
    assert torch.equal(labels(torch.tensor([0])), torch.zeros(1, 6))
    assert not torch.equal(labels(torch.tensor([1])), labels(torch.tensor([2])))


def test_gradients_of_labels_reach_their_own_rows_only():
    labels = Labels(NULL, 6, augmentations=3)
    labels(torch.tensor([1, NULL + 1 * (NULL + 1)])).sum().backward()
    assert labels.of_class.weight.grad.any(1).tolist() == [False, True, False]
    assert labels.of_view.weight.grad.any(1).tolist() == [True, False]


def test_the_unet_is_conditioned_on_the_augmentation():
    torch.manual_seed(0)
    net = UNet(1, NULL, (8, 16), (1, 1), augmentations=2)
    torch.nn.init.normal_(net.head.weight)
    for block in net.modules():
        if hasattr(block, "conv2"):
            torch.nn.init.normal_(block.conv2.weight)
    x, level = torch.randn(1, 1, 8, 8), torch.zeros(1)
    plain, mirrored = net(x, level, torch.tensor([1])), net(x, level, torch.tensor([1 + NULL + 1]))
    assert not torch.allclose(plain, mirrored)


def test_sinusoid():
    level = torch.tensor([-2.0, 1.5])
    waves = sinusoid(level, 8)
    assert waves.shape == (2, 8)
    torch.testing.assert_close(waves[0], torch.tensor([0.0] * 4 + [1.0] * 4))
    angles = 1000 * 10000.0 ** (-torch.arange(4) / 3)
    torch.testing.assert_close(waves[1], torch.cat([angles.sin(), angles.cos()]), atol=1e-3, rtol=0)
