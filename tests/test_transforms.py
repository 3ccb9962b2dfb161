import json
from dataclasses import asdict

import pytest
import torch
from torchvision.models import ResNet18_Weights

from xray_helpers.decoding import read_image
from xray_helpers.settings import seed_everything
from xray_helpers.transforms import (
    GRAY,
    STRENGTHS,
    Augmentation,
    Preparation,
    RandomFrame,
    RandomJPEG,
    Sometimes,
    augmentations,
    to_unit,
)


class TestPreparation:
    def test_known_pixels_become_known_numbers(self):
        images = torch.tensor([0, 51, 102, 255], dtype=torch.uint8).view(1, 1, 2, 2)
        prepared = Preparation(2)(images)
        assert prepared.shape == (1, 3, 2, 2)
        assert prepared.dtype == torch.float32
        for channel, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
            expected = (torch.tensor([[0, 0.2], [0.4, 1]]) - mean) / std
            torch.testing.assert_close(prepared[0, channel], expected)

    def test_it_does_what_the_weights_of_torchvision_expect(self, batch):
        theirs = ResNet18_Weights.DEFAULT.transforms(crop_size=128, resize_size=128)(batch.expand(-1, 3, -1, -1))
        torch.testing.assert_close(Preparation(128)(batch), theirs)

    def test_floats_of_0_to_1_give_the_same(self, batch):
        assert torch.equal(Preparation(128)(batch), Preparation(128)(batch.float() / 255))

    def test_a_file_is_read_as_the_store_reads_it(self, tiny, catalog):
        path = tiny / "chest_xray" / catalog.loc[catalog["error"] == "", "path"].iloc[0]
        image = Preparation(40, "crop").read(path)
        assert image.shape == (1, 40, 40)
        assert (image[0].numpy() == read_image(path, 40, "crop")).all()

    def test_it_goes_to_json_and_back(self):
        preparation = Preparation(96, "pad")
        assert Preparation(**json.loads(json.dumps(asdict(preparation)))) == preparation

    @pytest.mark.parametrize("shape", [(1, 64, 64), (2, 3, 64, 64), (2, 1, 64, 32), (2, 1, 128, 128)])
    def test_another_shape_is_refused(self, shape):
        with pytest.raises(ValueError, match=r"expected images of shape \(B, 1, 64, 64\), got"):
            Preparation(64)(torch.zeros(shape, dtype=torch.uint8))

    def test_another_type_or_policy_is_refused(self):
        with pytest.raises(TypeError, match="expected uint8 or floating point images, got torch.int64"):
            Preparation(2)(torch.zeros(1, 1, 2, 2, dtype=torch.int64))
        with pytest.raises(ValueError, match="expected squash, pad, crop"):
            Preparation(2, "stretch")
        with pytest.raises(ValueError, match="one number for each of three channels"):
            Preparation(2, mean=(0.5,))


class TestAugmentation:
    @pytest.mark.parametrize("strength", ["light", "strong"])
    def test_every_image_is_changed_in_its_own_way_and_stays_an_image(self, batch, strength):
        seed_everything(0)
        same = batch[:1].expand(8, -1, -1, -1)
        changed = Augmentation(strength, 128)(same)
        assert changed.shape == (8, 1, 128, 128)
        assert changed.dtype == torch.float32
        assert changed.min() >= 0
        assert changed.max() <= 1
        assert len({image.numpy().tobytes() for image in changed}) == 8
        assert not any(torch.equal(image, to_unit(same)[0]) for image in changed)

    @pytest.mark.parametrize("name", augmentations("light", 64, flip=True))
    def test_each_step_changes_each_image_in_its_own_way(self, batch, name):
        seed_everything(0)
        same = to_unit(batch[:1].expand(8, -1, -1, -1))
        changed = augmentations("strong", 128, flip=True, always=True)[name](same)
        assert not any(torch.equal(image, same[0]) for image in changed)
        different = {"flip": 1, "erase frame": 5}.get(name, 8)  # two frames may have the same width in pixels
        assert len({image.numpy().tobytes() for image in changed}) >= different

    def test_the_same_seed_gives_the_same_and_another_does_not(self, batch):
        augment, results = Augmentation("strong", 128), []
        for seed in (0, 0, 1):
            seed_everything(seed)
            results.append(augment(batch))
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])

    def test_it_never_runs_in_evaluation(self, batch):
        augment = Augmentation("strong", 128).eval()
        before = torch.get_rng_state()
        assert torch.equal(augment(batch), to_unit(batch))
        assert torch.equal(torch.get_rng_state(), before)

    def test_none_changes_nothing(self, batch):
        assert torch.equal(Augmentation("none", 128)(batch), to_unit(batch))

    def test_the_heart_stays_on_its_side_unless_asked(self, batch):
        """Without a flip, an augmented image is nearer to the original than to its mirror image."""
        seed_everything(0)
        upright, flipped = Augmentation("light", 64), Augmentation("light", 64, flip=True)
        x = torch.linspace(0, 1, 64).expand(64, 1, 64, 64)  # dark on the left, bright on the right
        assert not any(_mirrored(image) for image in upright(x))
        mirrored = sum(_mirrored(image) for image in flipped(x))
        assert 20 < mirrored < 44  # half of 64

    def test_movements_stay_within_their_bounds(self):
        seed_everything(0)
        of, images = STRENGTHS["light"], torch.zeros(200, 1, 101, 101)
        images[:, :, 48:53, 48:53] = 1  # a square in the middle
        moved = augmentations("light", 101)["rotate, shift, stretch"](images)[:, 0]
        assert (moved.sum(dim=(1, 2)) > 15).all()
        place = torch.arange(101.0) - 50
        weight = moved.sum(dim=(1, 2))
        for axis in (1, 2):
            centre = (moved.sum(dim=3 - axis) * place).sum(dim=1) / weight
            assert centre.abs().max() <= of.shift * 101 + 1
            assert centre.abs().max() > of.shift * 101 / 2

    def test_gray_levels_are_only_moved_a_little_by_light(self):
        seed_everything(0)
        steps = augmentations("light", 64)
        images = torch.full((500, 1, 8, 8), 0.5)
        for name in ("brightness", "contrast", "gamma"):
            images = steps[name](images)
        assert 0.3 < images.min() < 0.48
        assert 0.52 < images.max() < 0.7

    def test_another_strength_is_refused(self):
        with pytest.raises(ValueError, match="augment='huge': expected none, light, strong"):
            Augmentation("huge", 64)

    def test_an_odd_size_and_one_image_work(self):
        seed_everything(0)
        for _ in range(20):
            assert Augmentation("strong", 37)(torch.full((1, 1, 37, 37), 100, dtype=torch.uint8)).shape == (
                1,
                1,
                37,
                37,
            )


def _mirrored(image):
    return image[..., :32].mean() > image[..., 32:].mean()


def test_a_step_with_a_chance_changes_that_share_of_the_images_and_not_its_input(batch):
    seed_everything(0)
    images = to_unit(batch[:1].expand(200, -1, -1, -1))
    for step in (RandomJPEG(20, 40), RandomFrame(0.1)):
        before = images.clone()
        changed = sum(not torch.equal(one, images[0]) for one in Sometimes(step, 0.3)(images))
        assert 40 < changed < 80
        assert torch.equal(images, before)
        assert torch.equal(Sometimes(step, 0.0)(images), images)


def test_a_frame_is_erased_from_all_four_sides_and_nothing_inside():
    images = torch.zeros(1, 1, 100, 100)
    framed = RandomFrame(0.1, 0.1)(images)[0, 0]
    assert (framed[10:90, 10:90] == 0).all()
    framed[10:90, 10:90] = GRAY
    torch.testing.assert_close(framed, torch.full((100, 100), GRAY))
