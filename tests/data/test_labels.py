"""Labels to condition samples on: those of the data where its classes are the model's."""

from dataclasses import replace

import torch

from simple_diffusion.data.images import Images
from simple_diffusion.data.info import DataInfo
from simple_diffusion.data.labels import labels_for, labels_like

DATA = Images("bars", torch.arange(100, dtype=torch.uint8)[:, None, None, None], torch.arange(100) // 75, ("a", "b"))


def test_labels_have_the_class_frequencies_of_the_data_and_are_shuffled():
    labels = labels_like(DATA, 1000, seed=0)
    assert labels.bincount().tolist() == [750, 250]
    assert labels[:100].bincount()[0] < 95
    assert torch.equal(labels, labels_like(DATA, 1000, seed=0))


def test_without_data_of_the_same_classes_the_labels_take_turns():
    info = DataInfo.of(DATA)
    assert torch.equal(labels_for(info, DATA, 8, 0), labels_like(DATA, 8, 0))
    others = replace(DATA, class_names=("cats", "dogs"))
    for images in (None, others):
        assert labels_for(info, images, 5, 0).tolist() == [0, 1, 0, 1, 0]
    assert labels_for(replace(info, class_names=()), DATA, 5, 0) is None
