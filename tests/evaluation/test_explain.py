from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import INFO
from torch import nn

from xray_helpers.data.transforms import GRAY
from xray_helpers.evaluation.explain import (
    Lesions,
    activation_maps,
    draw_lesions,
    enlarge,
    log_odds,
    occlusion_check,
    occlusions,
    pointing_game,
)
from xray_helpers.inference import run_network
from xray_helpers.training.model import build_model


def random_model(arch, outputs=1):
    torch.manual_seed(0)
    model = build_model(arch, outputs, "none").eval()
    nn.init.normal_(model.fc.weight)
    nn.init.normal_(model.fc.bias)
    model.info = INFO
    return model


@pytest.fixture
def images():
    return torch.randint(0, 256, (5, 1, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.real_network
@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_a_map_and_the_head_s_bias_add_up_to_the_output(arch, images):
    model = random_model(arch)
    maps = activation_maps(model, images)
    assert maps.shape == (5, 2, 2)
    logits = run_network(model, [(images, None)], INFO.preprocess).squeeze(1)
    torch.testing.assert_close(maps.sum(dim=(1, 2)) + model.fc.bias.detach(), logits, rtol=1e-4, atol=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.real_network
def test_each_output_has_its_map(images):
    model = random_model("resnet18", outputs=3)
    logits = run_network(model, [(images, None)], INFO.preprocess)
    for number in range(3):
        sums = activation_maps(model, images, number).sum(dim=(1, 2))
        torch.testing.assert_close(sums + model.fc.bias[number].detach(), logits[:, number], rtol=1e-4, atol=1e-4)
    numbers = logits.argmax(dim=1)  # one for each image
    given = numbers.numpy().copy()
    given.flags.writeable = False  # as pandas hands out its columns
    sums = activation_maps(model, images, given).sum(dim=(1, 2)) + model.fc.bias[numbers].detach()
    torch.testing.assert_close(sums, logits.amax(dim=1), rtol=1e-4, atol=1e-4)


@pytest.mark.real_network
def test_an_earlier_block_gives_a_finer_map(images):
    assert activation_maps(random_model("resnet18"), images, block="layer3").shape == (5, 4, 4)


@pytest.mark.real_network
def test_many_images_are_mapped_as_one_by_one(images):
    model = random_model("resnet18")
    many = images.repeat(8, 1, 1, 1)  # more than a batch
    torch.testing.assert_close(activation_maps(model, many)[-5:], activation_maps(model, images), rtol=1e-4, atol=1e-5)


def test_a_peak_between_two_cells_is_found_between_them():
    maps = torch.zeros(1, 4, 4)
    maps[0, 1, 1], maps[0, 1, 2] = 1.0, 0.9
    row, column = np.unravel_index(enlarge(maps, 64)[0].argmax(), (64, 64))
    assert 20 <= row <= 27
    assert 25 <= column <= 31  # centres of the cells: 23.5 and 39.5


class TestPointingGame:
    def known(self):
        lesions = np.zeros((2, 64, 64), dtype=bool)
        lesions[0, 8:16, 8:16] = lesions[1, 40:56, 40:56] = True
        return Lesions(torch.zeros(2, 1, 64, 64, dtype=torch.uint8), lesions, np.ones((2, 64, 64), dtype=bool))

    def test_a_case_worked_out_by_hand(self):
        maps = torch.zeros(2, 8, 8)
        maps[:, 1, 1] = 1.0  # in the first lesion, far from the second
        found = pointing_game(maps, self.known(), grown=0.001)
        assert found["hits"].tolist() == [True, False]
        assert found["accuracy"]["value"] == 0.5
        assert found["n"] == 2
        # Grown by one pixel at each side: a plus-shaped border of 8 and of 16 pixels a side.
        assert found["chance"] == pytest.approx(((64 + 32) + (256 + 64)) / 2 / 4096)

    def test_evidence_outside_of_the_lungs_does_not_count(self):
        known, maps = self.known(), torch.zeros(2, 8, 8)
        known.lungs[0, :, 32:] = False
        maps[0, 1, 1], maps[0, 6, 6] = 1.0, 5.0  # in the lesion; stronger, but outside of the lungs
        assert pointing_game(maps, known)["hits"].tolist() == [True, False]

    def test_evidence_against_is_no_evidence(self):
        maps = torch.zeros(2, 8, 8)
        maps[:, 1, 1] = -5.0
        assert not pointing_game(maps, self.known())["hits"][0]


def test_known_lesions_lie_in_the_lungs_and_a_seed_repeats_them():
    known, again = draw_lesions(6, 64, seed=1), draw_lesions(6, 64, seed=1)
    assert known.images.shape == (6, 1, 64, 64)
    assert known.images.dtype == torch.uint8
    assert torch.equal(known.images, again.images)
    assert known.lesions.any(axis=(1, 2)).all()
    inside = (known.lesions & known.lungs).sum() / known.lesions.sum()
    assert inside > 0.9
    assert not torch.equal(known.images, draw_lesions(6, 64, seed=2).images)


def test_log_odds_are_those_of_each_class_against_the_rest():
    logits = torch.tensor([[0.2, 1.0, -1.0], [3.0, 0.0, 0.5]])
    torch.testing.assert_close(log_odds(logits), logits.double().softmax(dim=1).logit())
    assert log_odds(torch.tensor([[0.25], [-2.0]])).tolist() == [[0.25], [-2.0]]


class TestOcclusion:
    def test_each_part_is_hidden_exactly(self):
        hidden = occlusions(20)
        assert {part: int(pixels.sum()) for part, pixels in hidden.items()} == {
            "nothing erased": 0,
            "corners erased": 4 * 4 * 4,
            "frame erased": 400 - 16 * 16,
            "all but the frame erased": 16 * 16,
        }
        assert hidden["corners erased"][:4, -4:].all()
        assert not hidden["frame erased"][2:-2, 2:-2].any()

    def test_what_is_hidden_is_gray_and_the_rest_stays(self):
        seen = []

        class Watcher(nn.Module):
            info = replace(INFO, preprocess=lambda images: images)

            def __init__(self):
                super().__init__()
                self.scale = nn.Parameter(torch.tensor(1.0))

            def forward(self, x):
                seen.append(x)
                return x[:, 0, :1, 0]

        occlusion_check(Watcher(), torch.full((2, 1, 20, 20), 255, dtype=torch.uint8), [0, 1], list("ab"))
        for images, hidden in zip(seen, occlusions(20).values(), strict=True):
            assert (images[:, 0, hidden] == GRAY).all()
            assert (images[:, 0, ~hidden] == 1).all()

    @pytest.mark.parametrize(("rows", "left"), [(slice(0, 4), (0.5, 0.5, 1.0)), (slice(28, 36), (1.0, 1.0, 0.5))])
    def test_a_model_is_caught_reading_a_corner_or_cleared_when_it_reads_the_middle(self, rows, left):
        class Reader(nn.Module):
            info = INFO

            def __init__(self):
                super().__init__()
                self.scale = nn.Parameter(torch.tensor(5.0))

            def forward(self, x):
                return self.scale * x[:, :1, rows, rows].mean(dim=(2, 3))

        truth = torch.arange(20) % 2
        images = torch.full((20, 1, 64, 64), 100, dtype=torch.uint8)
        images[truth == 1, :, rows, rows] = 200
        found = occlusion_check(Reader(), images, truth.numpy(), range(20))
        assert found["part"].tolist() == list(occlusions(64))
        assert set(found["class"]) == {"PNEUMONIA"}
        assert found["auc"].tolist() == [1.0, *left]
        assert found["moved"][0] == found["turned"][0] == 0
        assert (found["moved"][1:] > 0).tolist() == [value == 0.5 for value in left]

    @pytest.mark.parametrize(
        ("classes", "weights"),
        [(("NORMAL", "PNEUMONIA"), [5.0]), (("bacterial", "normal", "viral"), [8.0, -4.0, 2.0])],
    )
    def test_what_moves_is_the_log_odds_of_each_class_against_the_rest(self, classes, weights):
        class Middle(nn.Module):
            info = replace(INFO, classes=classes, preprocess=lambda images: images)

            def __init__(self):
                super().__init__()
                self.weights = nn.Parameter(torch.tensor(weights))

            def forward(self, x):
                return x[:, 0, 10, 10, None] * self.weights

        images = torch.full((6, 1, 20, 20), 204, dtype=torch.uint8)
        found = occlusion_check(Middle(), images, np.arange(6) % len(classes), range(6)).set_index("part")["moved"]
        logits = torch.tensor([[204 / 255], [GRAY]]).double() * torch.tensor(weights).double()
        before, after = logits if len(weights) == 1 else logits.softmax(dim=1).logit()
        moved = pytest.approx((after - before).abs().tolist(), rel=1e-5)
        assert found.loc[["all but the frame erased"]].tolist() == moved
        assert found.loc[["frame erased"]].tolist() == [0.0] * len(weights)

    def test_each_of_three_classes_is_judged_against_the_rest(self):
        class Levels(nn.Module):
            """Knows each class by its gray level, in the corner for the last one and in the middle for the others."""

            info = replace(INFO, classes=("bacterial", "normal", "viral"))

            def __init__(self):
                super().__init__()
                self.scale = nn.Parameter(torch.tensor(5.0))

            def forward(self, x):
                middle, corner = x[:, 0, 28:36, 28:36].mean(dim=(1, 2)), x[:, 0, :4, :4].mean(dim=(1, 2))
                return self.scale * torch.stack([middle, -middle, corner], dim=1)

        truth = torch.arange(30) % 3
        images = torch.full((30, 1, 64, 64), 100, dtype=torch.uint8)
        images[truth == 0, :, 28:36, 28:36] = 200
        images[truth == 1, :, 28:36, 28:36] = 20
        images[truth == 2, :, :4, :4] = 200
        found = occlusion_check(Levels(), images, truth.numpy(), range(30)).set_index(["part", "class"])["auc"]
        assert found.loc["nothing erased"].index.tolist() == ["bacterial", "normal", "viral"]
        assert found.loc["nothing erased"].min() == 1.0
        only_frame = found.loc["all but the frame erased"]  # the others are told from viral ones, and not apart
        assert only_frame.to_dict() == {"bacterial": 0.75, "normal": 0.75, "viral": 1.0}
