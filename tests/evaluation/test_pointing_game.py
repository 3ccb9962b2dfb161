"""How often the maps of trained networks point at lesions."""

import pytest
from conftest import SHARED

from xray_helpers.data.synthetic import write_dataset, write_twins
from xray_helpers.evaluation.explain import activation_maps, draw_lesions, pointing_game
from xray_helpers.settings import Settings
from xray_helpers.training.train import train

PRETRAINED = SHARED / "torch_home/hub/checkpoints/resnet18-f37072fd.pth"
pytestmark = [pytest.mark.slow, pytest.mark.real_network]


def test_a_model_that_learned_lesions_points_at_new_ones(tmp_path):
    """As in notebook 06. docs/benchmarks.md gives several seeds, in both precisions; all are far above this bound."""
    write_twins(tmp_path / "twins")
    small = {"image_size": 128, "batch_size": 32, "epochs": 16, "learning_rate": 1e-3}
    small["augment"] = "light"
    model = train(Settings(data=str(tmp_path / "twins"), weights="none", **small)).model
    known = draw_lesions(200, 128, seed=6, strength=2.0)
    found = pointing_game(activation_maps(model, known.images), known)
    assert found["accuracy"]["low"] > found["chance"]


@pytest.mark.skipif(not PRETRAINED.is_file(), reason="no pretrained weights in ../shared beside this checkout")
def test_from_pretrained_weights_the_lesions_of_a_whole_dataset_are_found(tmp_path):
    """Bacterial and viral, several images per patient, no shortcut, lesions of the usual density."""
    write_dataset(tmp_path / "plain", seed=9, patients=300, shortcut=False)
    small = {"image_size": 128, "batch_size": 32, "epochs": 4, "learning_rate": 1e-3}
    small |= {"augment": "light", "frozen": "none"}
    model = train(Settings(data=str(tmp_path / "plain"), weights=str(PRETRAINED), device="cpu", **small)).model
    known = draw_lesions(200, 128, seed=6)
    for block, times in (("layer4", 2), ("layer3", 3)):
        found = pointing_game(activation_maps(model, known.images, block=block), known)
        assert found["accuracy"]["low"] > times * found["chance"], block
