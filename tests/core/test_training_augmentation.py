"""Augmentation of minibatches of images."""

import pytest
import torch

from hpsearch.errors import DataError
from hpsearch.objective.preprocess import Augment
from hpsearch.training.augmentation import augment, check_augment


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_nothing_is_done_by_default() -> None:
    flat = torch.rand(5, 7)
    assert augment(flat, Augment(), generator()) is flat
    check_augment(Augment(), (7,))


def test_half_of_the_images_are_mirrored() -> None:
    images = torch.rand(400, 3, 4, 2)
    changed = augment(images, Augment(flip=True), generator())
    mirrored = [torch.equal(new, old.flip(1)) for new, old in zip(changed, images, strict=True)]
    same = [torch.equal(new, old) for new, old in zip(changed, images, strict=True)]
    assert sum(mirrored) + sum(same) == 400
    assert abs(sum(mirrored) - 200) < 4 * 10  # four standard deviations, √(400 / 4)


def test_crops_are_cut_from_the_padded_image() -> None:
    images = 1 + torch.rand(300, 3, 4, 2)
    padded = torch.nn.functional.pad(images, (0, 0, 1, 1, 1, 1))
    changed = augment(images, Augment(crop=1), generator())
    assert changed.shape == images.shape
    places = [
        [(y, x) for y in range(3) for x in range(3) if torch.equal(new, old[y : y + 3, x : x + 4])]
        for new, old in zip(changed, padded, strict=True)
    ]
    assert {len(found) for found in places} == {1}
    assert len({found[0] for found in places}) == 9  # all but surely: 9 · (8 / 9)³⁰⁰ = 4e-15


def test_both_together_and_the_input_is_left_alone() -> None:
    images = torch.rand(50, 3, 3, 1)
    before = images.clone()
    changed = augment(images, Augment(flip=True, crop=2), generator())
    assert torch.equal(images, before)
    padded = torch.nn.functional.pad(images, (0, 0, 2, 2, 2, 2))
    for new, old in zip(changed, padded, strict=True):
        cuts = [old[y : y + 3, x : x + 3] for y in range(5) for x in range(5)]
        assert any(torch.equal(new, cut) or torch.equal(new, cut.flip(1)) for cut in cuts)


def test_the_generator_decides() -> None:
    images, both = torch.rand(20, 4, 4, 1), Augment(flip=True, crop=2)
    first, again, other = (augment(images, both, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("setting", [Augment(flip=True), Augment(crop=1)])
def test_flat_samples_are_refused(setting: Augment) -> None:
    with pytest.raises(DataError, match=r"augment needs images.*64 numbers in a row"):
        check_augment(setting, (64,))
