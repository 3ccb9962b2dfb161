import io
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import ResNet18_Weights

from xray_helpers.data import transforms
from xray_helpers.data.reader import read_image
from xray_helpers.data.transforms import (
    GRAY,
    IMAGENET_MEAN,
    STRENGTHS,
    Augmentation,
    Preprocess,
    RandomApply,
    RandomFrame,
    RandomJPEG,
    augmentations,
    jpeg,
    to_unit,
)
from xray_helpers.settings import seed_everything


class TestPreprocess:
    def test_known_pixels_become_known_numbers(self):
        images = torch.tensor([0, 51, 102, 255], dtype=torch.uint8).view(1, 1, 2, 2)
        preprocessed = Preprocess(2)(images)
        assert preprocessed.shape == (1, 3, 2, 2)
        assert preprocessed.dtype == torch.float32
        for channel, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
            expected = (torch.tensor([[0, 0.2], [0.4, 1]]) - mean) / std
            torch.testing.assert_close(preprocessed[0, channel], expected)

    def test_it_does_what_the_weights_of_torchvision_expect(self, batch):
        theirs = ResNet18_Weights.DEFAULT.transforms(crop_size=128, resize_size=128)(batch.expand(-1, 3, -1, -1))
        torch.testing.assert_close(Preprocess(128)(batch), theirs)

    def test_a_mean_and_a_standard_deviation_of_your_own(self):
        preprocess = Preprocess(2, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
        channels = preprocess(torch.full((1, 1, 2, 2), 0.6))[0, :, 0, 0]
        torch.testing.assert_close(channels, torch.tensor([1.0, 0.4, 0.15]))

    def test_floats_of_0_to_1_give_the_same(self, batch):
        assert torch.equal(Preprocess(128)(batch), Preprocess(128)(batch.float() / 255))

    def test_a_file_is_read_as_the_image_cache_reads_it(self, tiny, catalog):
        path = tiny / "chest_xray" / catalog.loc[catalog["error"] == "", "path"].iloc[0]
        image = Preprocess(40, "crop").read(path)
        assert image.shape == (1, 40, 40)
        assert (image[0].numpy() == read_image(path, 40, "crop")).all()

    def test_it_goes_to_json_and_back(self):
        preprocess = Preprocess(96, "pad", whites=(4095, None))
        assert Preprocess(**json.loads(json.dumps(asdict(preprocess)))) == preprocess

    @pytest.mark.parametrize(
        "shape", [(1, 64, 64), (2, 3, 64, 64), (2, 1, 64, 32), (2, 1, 128, 128), (2, 1, 64, 64, 1)]
    )
    def test_another_shape_is_refused(self, shape):
        with pytest.raises(ValueError, match=r"expected images of shape \(B, 1, 64, 64\), got"):
            Preprocess(64)(torch.zeros(shape, dtype=torch.uint8))

    def test_another_type_or_resizing_is_refused(self):
        with pytest.raises(TypeError, match="expected uint8 or floating point images, got torch.int64"):
            Preprocess(2)(torch.zeros(1, 1, 2, 2, dtype=torch.int64))
        with pytest.raises(ValueError, match="expected squash, pad, crop"):
            Preprocess(2, "stretch")
        for wrong in ({"mean": (0.5,)}, {"std": (0.5, 0.5)}, {"std": (0.5,) * 4}):
            with pytest.raises(ValueError, match="one number for each of three channels"):
                Preprocess(2, **wrong)

    def test_what_is_erased_is_about_nothing_for_the_network(self):
        assert pytest.approx(np.mean(IMAGENET_MEAN), abs=1e-3) == GRAY
        erased = Preprocess(4)(torch.full((1, 1, 4, 4), GRAY))
        assert abs(erased.mean()) < 0.01
        assert erased.abs().max() < 0.2


class TestAugmentation:
    @pytest.mark.parametrize("strength", STRENGTHS)
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

    def test_the_heart_stays_on_its_side_unless_asked(self):
        """Without a flip, an augmented image is nearer to the original than to its mirror image."""
        seed_everything(0)
        upright, flipped = Augmentation("light", 64), Augmentation("light", 64, flip=True)
        x = torch.linspace(0, 1, 64).expand(64, 1, 64, 64)  # dark on the left, bright on the right
        assert not any(_is_mirrored(image) for image in upright(x))
        mirrored = sum(_is_mirrored(image) for image in flipped(x))
        assert 20 < mirrored < 44  # half of 64

    def test_another_strength_is_refused(self):
        with pytest.raises(ValueError, match="augment='huge': expected none, light, strong, style"):
            Augmentation("huge", 64)

    def test_an_odd_size_and_one_image_work(self):
        seed_everything(0)
        augment = Augmentation("strong", 37)
        for _ in range(20):
            assert augment(torch.full((1, 1, 37, 37), 100, dtype=torch.uint8)).shape == (1, 1, 37, 37)

    def test_it_says_what_it_does(self):
        assert repr(Augmentation("light", 64)).startswith("Augmentation(\n  'light', size=64, flip=False")


def _is_mirrored(image):
    return image[..., :32].mean() > image[..., 32:].mean()


class TestSteps:
    """Each step alone: always applied, on images whose change can be measured."""

    def test_the_strengths_are_those_of_the_published_runs(self):
        assert tuple(STRENGTHS["light"]) == (5, 0.05, 0.05, 0.1, 1.2, 1.0, 40, 0.08, 0.10, 0.25, 0.0)
        assert tuple(STRENGTHS["strong"]) == (10, 0.10, 0.10, 0.2, 1.5, 2.0, 15, 0.15, 0.15, 0.5, 0.0)
        assert tuple(STRENGTHS["style"]) == (5, 0.05, 0.05, 0.4, 1.6, 1.0, 40, 0.0, 0.15, 0.25, 0.5)

    def test_geometry_comes_before_exposure_and_exposure_before_what_is_lost_or_erased(self):
        assert list(augmentations("light", 64, flip=True)) == [
            "flip", "rotate, shift, stretch", "brightness", "contrast", "gamma", "blur", "JPEG", "erase", "erase frame",
        ]  # fmt: skip
        assert "flip" not in augmentations("light", 64)
        assert list(augmentations("style", 64)) == [
            "filter", "rotate, shift, stretch", "brightness", "contrast", "gamma", "blur", "JPEG", "erase frame",
        ]  # fmt: skip

    def test_a_random_filter_keeps_brightness_and_places_but_not_texture(self, batch):
        seed_everything(0)
        image = to_unit(batch[:1]) * 0.4 + 0.3  # far from black and white, where levels would be cut off
        changed = augmentations("style", 128, always=True)["filter"](image.expand(200, -1, -1, -1))
        assert len({each.numpy().tobytes() for each in changed}) == 200
        torch.testing.assert_close(changed.mean((1, 2, 3)), image.mean().expand(200), atol=0.01, rtol=0)
        sharpness = changed.diff(dim=3).abs().mean((1, 2, 3)) / image.diff(dim=3).abs().mean()
        assert sharpness.min() < 0.9
        assert sharpness.max() > 1.5
        assert changed.std((1, 2, 3)).max() < 1.1 * image.std()
        point = torch.zeros(50, 1, 9, 9)
        point[:, :, 4, 4] = 1
        moved = augmentations("style", 9, always=True)["filter"](point) - point
        inside = torch.zeros(9, 9, dtype=torch.bool)
        inside[3:6, 3:6] = True
        around = moved[:, 0, ~inside]  # one level for all places that the filter cannot reach
        torch.testing.assert_close(around, around[:, :1].expand_as(around), atol=1e-5, rtol=0)

    def test_what_lies_outside_of_a_moved_image_is_its_border_in_style(self):
        seed_everything(0)
        white = torch.ones(50, 1, 64, 64)
        assert augmentations("light", 64)["rotate, shift, stretch"](white).min() < 0.5
        assert augmentations("style", 64)["rotate, shift, stretch"](white).min() > 0.99

    @pytest.mark.parametrize("name", augmentations("light", 64, flip=True))
    def test_each_step_changes_each_image_in_its_own_way(self, batch, name):
        seed_everything(0)
        same = to_unit(batch[:1].expand(8, -1, -1, -1))
        changed = augmentations("strong", 128, flip=True, always=True)[name](same)
        assert not any(torch.equal(image, same[0]) for image in changed)
        different = {"flip": 1, "erase frame": 5}.get(name, 8)  # two frames may have the same width in pixels
        assert len({image.numpy().tobytes() for image in changed}) >= different

    @pytest.mark.parametrize(
        ("strength", "low", "high"), [("light", 70, 130), ("strong", 160, 240), ("style", 70, 130)]
    )
    @pytest.mark.parametrize("name", ["blur", "JPEG", "erase", "erase frame", "filter"])
    def test_some_steps_happen_to_a_part_of_the_images(self, batch, name, strength, low, high):
        """A quarter of 400 images, or half of them."""
        seed_everything(0)
        same = to_unit(batch[:1, :, 40:72, 40:72].expand(400, -1, -1, -1))
        if name not in (steps := augmentations(strength, 128)):
            assert (name, strength == "style") in (("filter", False), ("erase", True))
            return
        changed = steps[name](same)
        low, high = (160, 240) if name == "filter" else (low, high)
        assert low < sum(not torch.equal(image, same[0]) for image in changed) < high

    def test_shifts_stay_within_their_bounds_and_use_them(self):
        seed_everything(0)
        shift, images = STRENGTHS["light"].shift, torch.zeros(200, 1, 101, 101)
        images[:, :, 48:53, 48:53] = 1  # a square in the middle
        moved = augmentations("light", 101)["rotate, shift, stretch"](images)[:, 0]
        assert (moved.sum(dim=(1, 2)) > 15).all()
        for centre in _centres(moved):
            assert centre.abs().max() <= shift * 101 + 1
            assert centre.abs().max() > shift * 101 / 2

    def test_rotations_stay_within_their_bounds_and_use_them(self):
        seed_everything(0)
        images = torch.zeros(300, 1, 101, 101)
        images[:, :, 49:52, 20:81] = 1  # a bar from left to right
        turned = augmentations("light", 101)["rotate, shift, stretch"](images)[:, 0]
        y, x = _centres(turned)
        place, mass = torch.arange(101.0) - 50, turned.sum(dim=(1, 2))
        across = (turned.sum(dim=1) * place**2).sum(dim=1) / mass - x**2
        mixed = (turned * place[:, None] * place).sum(dim=(1, 2)) / mass - x * y
        degrees = torch.rad2deg(torch.atan(mixed / across))
        # Stretching height and width differently turns a slanted bar by another tenth.
        assert degrees.abs().max() < 5 * 1.05 / 0.95 + 0.1
        assert degrees.min() < -4
        assert degrees.max() > 4

    def test_width_and_height_are_stretched_each_on_its_own(self):
        seed_everything(0)
        images = torch.zeros(300, 1, 101, 101)
        images[:, :, 30:71, 30:71] = 1
        moved = augmentations("light", 101)["rotate, shift, stretch"](images)[:, 0]
        place, mass = torch.arange(101.0) - 50, moved.sum(dim=(1, 2))
        y, x = (
            (12 * ((moved.sum(dim=axis) * place**2).sum(dim=1) / mass - centre**2)).sqrt() / 41
            for axis, centre in zip((2, 1), _centres(moved), strict=True)
        )
        for side in (y, x):
            assert side.min() == pytest.approx(0.95, abs=0.01)
            assert side.max() == pytest.approx(1.05, abs=0.01)
        assert (y - x).abs().max() > 0.07

    @pytest.mark.parametrize(
        ("name", "low", "high"),
        [("brightness", 0.4, 0.6), ("contrast", 0.45, 0.55), ("gamma", 0.5**1.2, 0.5 ** (1 / 1.2))],
    )
    def test_gray_levels_are_only_moved_a_little(self, name, low, high):
        seed_everything(0)
        gray = augmentations("light", 64)[name](torch.full((500, 1, 2, 2), 0.5))
        assert low - 1e-6 <= gray.min() < low + 0.005
        assert high - 0.005 < gray.max() <= high + 1e-6
        assert all(len(image.unique()) == 1 for image in gray)

    def test_images_are_blurred_in_proportion_to_their_side(self):
        seed_everything(0)
        points = torch.zeros(300, 1, 61, 61)
        points[:, :, 30, 30] = 1
        blurred = augmentations("strong", 448, always=True)["blur"](points)[:, 0]
        place = torch.arange(61.0) - 30
        for axis in (1, 2):
            deviation = (blurred.sum(dim=axis) * place**2).sum(dim=1).sqrt()  # 2 pixels at 224 are 4 at 448
            assert 0.79 < deviation.min() < 1
            assert 3.7 < deviation.max() < 4
        torch.testing.assert_close(blurred.sum(dim=(1, 2)), torch.ones(300))
        widest = blurred[deviation.argmax()]
        assert (widest.sum(dim=0) > 0).sum() == 2 * 3 * 4 + 1  # three standard deviations to either side
        small = augmentations("light", 32, always=True)["blur"](points)[:, 0]
        assert (small.sum(dim=1) > 0).sum(dim=1).max() == 3

    def test_erased_boxes_have_bounds_in_area_and_shape(self):
        seed_everything(0)
        erased = augmentations("light", 200, always=True)["erase"](torch.zeros(200, 1, 200, 200))[:, 0] == GRAY
        height, width = erased.any(dim=2).sum(dim=1), erased.any(dim=1).sum(dim=1)
        assert (erased.sum(dim=(1, 2)) == height * width).all()
        area, shape = height * width / 200**2, height / width
        assert 0.018 < area.min() < 0.025
        assert 0.075 < area.max() < 0.082
        assert 0.47 < shape.min() < 0.6
        assert 1.7 < shape.max() < 2.15

    def test_erased_frames_have_bounds(self):
        seed_everything(0)
        framed = augmentations("light", 200, always=True)["erase frame"](torch.zeros(300, 1, 200, 200))[:, 0] == GRAY
        width = framed[:, 100].sum(dim=1) / 2 / 200
        assert 0.0175 <= width.min() < 0.025
        assert 0.095 < width.max() <= 0.1025

    def test_jpeg_qualities_have_bounds(self, monkeypatch):
        seed_everything(0)
        seen = []
        monkeypatch.setattr(transforms, "jpeg", lambda images, quality: seen.extend(quality.tolist()) or images)
        augmentations("light", 8, always=True)["JPEG"](torch.zeros(2000, 1, 8, 8))
        assert 40 <= min(seen) < 40.5
        assert 94.5 < max(seen) <= 95
        assert len(set(seen)) > 1900


def _centres(images):
    """Of mass, (N, H, W) → y and x, from the middle."""
    place, mass = torch.arange(float(images.shape[1])) - images.shape[1] // 2, images.sum(dim=(1, 2))
    return [(images.sum(dim=axis) * place).sum(dim=1) / mass for axis in (2, 1)]


def test_random_apply_changes_its_share_of_the_images_and_not_its_input(batch):
    seed_everything(0)
    images = to_unit(batch[:1].expand(200, -1, -1, -1))
    for step in (RandomJPEG(20, 40), RandomFrame(0.1)):
        before = images.clone()
        changed = sum(not torch.equal(one, images[0]) for one in RandomApply(step, 0.3)(images))
        assert 40 < changed < 80
        assert torch.equal(images, before)
        assert torch.equal(RandomApply(step, 0.0)(images), images)


def test_a_frame_is_erased_from_all_four_sides_and_nothing_inside():
    images = torch.zeros(1, 1, 100, 100)
    framed = RandomFrame(0.1, 0.1)(images)[0, 0]
    assert (framed[10:90, 10:90] == 0).all()
    framed[10:90, 10:90] = GRAY
    torch.testing.assert_close(framed, torch.full((100, 100), GRAY))


def test_a_frame_takes_the_pixels_whose_centres_it_covers():
    images = torch.zeros(1, 1, 8, 8)
    assert torch.equal(RandomFrame(1 / 16, 1 / 16)(images), images)  # it ends at the centres of the outermost
    assert (RandomFrame(1 / 15, 1 / 15)(images) == GRAY).sum() == 64 - 36


def encode(image, quality):
    """What Pillow makes of an image (H, W) as a JPEG."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return Image.open(stream)


class TestJPEG:
    @pytest.mark.parametrize("quality", [15, 40, 75, 95])
    def test_it_does_what_a_real_encoder_does(self, batch, quality):
        batch = batch[..., :115, :126]  # the last blocks are not whole
        ours = jpeg(batch / 255, torch.full((8,), float(quality))) * 255
        for image, made in zip(batch, ours, strict=True):
            real = np.asarray(encode(image[0].numpy(), quality)).astype(float)
            # The encoder computes with integers: a level more or less here and there.
            assert np.abs(real - made[0].numpy()).mean() < min(0.4, 0.5 * np.abs(real - image[0].numpy()).mean())

    @pytest.mark.parametrize(
        ("quality", "step"), [(1, 255), (4, 200), (10, 80), (25, 32), (50, 16), (51, 16), (75, 8), (95, 2), (100, 1)]
    )
    def test_a_flat_image_has_the_nearest_level_that_the_quality_knows(self, quality, step):
        """The one coefficient of a flat block is eight times its level, counted from 128, in whole steps."""
        levels = torch.arange(256.0)
        whole = 8 * (levels - 128) / step
        certain = ((whole % 1 - 0.5).abs() > 1e-3) & ((whole.round() * step / 8 % 1 - 0.5).abs() > 1e-3)
        images = (levels / 255).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
        found = jpeg(images, torch.full((256,), float(quality))) * 255
        expected = (whole.round() * step / 8 + 128).round().clamp(0, 255).view(-1, 1, 1, 1).expand_as(found)
        assert certain.sum() > 100
        torch.testing.assert_close(found[certain], expected[certain], atol=1e-3, rtol=0)

    def test_black_and_white_stay_and_nothing_leaves_the_range(self):
        ends = torch.stack([torch.zeros(1, 16, 16), torch.ones(1, 16, 16)])
        assert torch.equal(jpeg(ends, torch.tensor([95.0, 95.0])), ends)
        sharp = (torch.arange(64) % 3 == 0).float().expand(1, 1, 64, 64)
        found = jpeg(sharp, torch.tensor([20.0]))
        assert found.min() == 0
        assert found.max() == 1

    def test_the_best_quality_changes_hardly_a_pixel(self, batch):
        found = jpeg(batch / 255, torch.full((8,), 100.0)) * 255
        assert (found - batch).abs().mean() < 0.15
        assert (found - batch).abs().max() <= 2

    def test_each_image_has_its_own_quality(self, batch):
        pair = batch[:1].expand(2, -1, -1, -1).double() / 255  # so exact that no level depends on the processor
        low, high = jpeg(pair, torch.tensor([10.0, 95.0]).double())
        assert torch.equal(low[None], jpeg(pair[:1], torch.tensor([10.0]).double()))
        assert (low - pair[0]).abs().mean() > 5 * (high - pair[0]).abs().mean()

    def test_a_side_that_is_no_multiple_of_eight_keeps_its_size(self):
        images = torch.rand(2, 1, 37, 20)
        assert jpeg(images, torch.tensor([90.0, 90.0])).shape == (2, 1, 37, 20)
