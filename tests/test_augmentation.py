"""Augmentations: the group of the square, each view as often as any other, told or not told."""

import pytest
import torch

from simple_diffusion.augmentation import AUGMENTATIONS, augmented, symmetries
from simple_diffusion.guidance import drop_labels, unlabelled
from simple_diffusion.networks.embedding import Labels, sinusoid
from simple_diffusion.networks.unet import UNet
from simple_diffusion.randomness import Draws

NULL = 3
X = torch.arange(16.0).view(1, 4, 4)  # no two pixels alike: each symmetry gives another image


def seen_by(views, told=True, n=4000, cond=None, step=0, wrap=lambda loss: loss):
    """What a loss is given: images and labels."""
    given = {}

    def loss(denoiser, x0, cond, draws):
        given.update(x0=x0, cond=cond)
        return x0.flatten(1).mean(1)

    x0 = X.expand(n, 1, 4, 4)
    wrap(augmented(loss, views, NULL, told))(None, x0, cond, Draws(0, step, range(n), total=n))
    return given["x0"], given["cond"]


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("square", [True, False])
def test_the_first_view_is_the_image_and_all_keep_its_shape(name, square):
    views = AUGMENTATIONS[name](square)
    x = torch.rand(2, 3, 5, 5 if square else 7)
    assert torch.equal(views[0](x), x)
    assert all(view(x).shape == x.shape for view in views)
    assert all(torch.equal(view(x).flatten().sort().values, x.flatten().sort().values) for view in views)


def test_the_symmetries_of_the_square_are_its_group():
    views = symmetries(True)
    images = {tuple(view(X).flatten().tolist()) for view in views}
    assert len(images) == 8
    for f in views:  # closed: a view of a view is a view
        assert {tuple(g(f(X)).flatten().tolist()) for g in views} == images


def test_the_rectangle_keeps_its_sides():
    x = torch.arange(6.0).view(1, 2, 3)
    assert len({tuple(view(x).flatten().tolist()) for view in symmetries(False)}) == 4


@pytest.mark.parametrize("labelled", [True, False])
def test_every_view_comes_as_often_and_the_label_names_it(labelled):
    views = symmetries(True)
    label = torch.arange(4000) % (NULL + 1)
    x0, cond = seen_by(views, cond=label if labelled else None)
    view = cond // (NULL + 1)
    assert torch.equal(cond % (NULL + 1), label if labelled else torch.full((4000,), NULL))
    for number, look in enumerate(views):
        assert torch.equal(x0[view == number], look(X).expand_as(x0[view == number]))
    # 4,000 draws of 8: 500 each with a deviation of 21
    assert all(abs((view == number).sum() - 500) < 5 * 21 for number in range(8))


def test_untold_the_labels_stay():
    label = torch.arange(4000) % NULL
    x0, cond = seen_by(symmetries(True), told=False, cond=label)
    assert torch.equal(cond, label)
    assert len({tuple(image.flatten().tolist()) for image in x0}) == 8


def test_views_are_derived_from_seed_step_and_sample():
    views = symmetries(True)
    (a, _), (b, _), (c, _) = seen_by(views), seen_by(views), seen_by(views, step=1)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    few, _ = seen_by(views, n=10)
    assert torch.equal(few, a[:10])


def test_a_dropped_label_keeps_its_view():
    label = torch.arange(4000) % NULL
    _, cond = seen_by(symmetries(True), cond=label, wrap=lambda loss: drop_labels(loss, NULL, p=1.0))
    assert (cond % (NULL + 1) == NULL).all()
    assert (cond // (NULL + 1)).unique().tolist() == list(range(8))
    assert torch.equal(unlabelled(torch.tensor([0, NULL, 1 + 2 * (NULL + 1)]), NULL), torch.tensor([3, 3, 3 + 8]))


def test_memory_format_survives():
    x0 = torch.rand(4, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    given = []
    loss = augmented(lambda d, x, c, r: given.append(x), symmetries(True), NULL)
    loss(None, x0, None, Draws(0, 0, range(4), total=4))
    assert given[0].is_contiguous(memory_format=torch.channels_last)


# --- what the network makes of it ------------------------------------------------------------------------------------


def test_no_label_and_the_plain_view_are_the_zero_vector():
    labels = Labels(NULL, 6, views=4)
    assert labels(None) == 0
    assert torch.equal(labels(torch.tensor([NULL])), torch.zeros(1, 6))
    label, view = labels(torch.tensor([1])), labels(torch.tensor([NULL + 2 * (NULL + 1)]))
    assert label.any()
    assert view.any()
    torch.testing.assert_close(labels(torch.tensor([1 + 2 * (NULL + 1)])), label + view)
    assert len({tuple(labels(torch.tensor([c])).flatten().tolist()) for c in range(4 * (NULL + 1))}) == 4 * (NULL + 1)


def test_a_label_out_of_range_is_an_error():
    plain, viewed = Labels(NULL, 6), Labels(NULL, 6, views=2)
    for labels, wrong in ((plain, NULL + 1), (plain, -1), (viewed, 2 * (NULL + 1))):
        with pytest.raises(IndexError):
            labels(torch.tensor([0, wrong]))


def test_without_classes_a_view_alone_is_told():
    labels = Labels(0, 6, views=3)
    assert torch.equal(labels(torch.tensor([0])), torch.zeros(1, 6))
    assert not torch.equal(labels(torch.tensor([1])), labels(torch.tensor([2])))


def test_gradients_of_labels_reach_their_own_rows_alone():
    labels = Labels(NULL, 6, views=3)
    labels(torch.tensor([1, NULL + 1 * (NULL + 1)])).sum().backward()
    assert labels.of_class.weight.grad.any(1).tolist() == [False, True, False]
    assert labels.of_view.weight.grad.any(1).tolist() == [True, False]


def test_the_unet_hears_the_view():
    torch.manual_seed(0)
    net = UNet(1, NULL, (8, 16), (1, 1), views=2)
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
