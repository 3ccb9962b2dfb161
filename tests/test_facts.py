import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ABOUT

from xray_helpers.facts import BEST, FACTS, CheckpointError, read_about, write_about


@pytest.fixture
def folder(tmp_path):
    (tmp_path / BEST).write_bytes(b"weights")
    write_about(tmp_path, ABOUT)
    return tmp_path


def test_what_is_known_comes_back_as_it_was(folder):
    assert read_about(folder) == read_about(str(folder)) == ABOUT
    other = replace(ABOUT, val_loss=float("inf"), classes=("a", "b", "c"))
    write_about(folder, other)
    assert read_about(folder) == other
    assert read_about(folder).num_outputs == 3


def test_threshold_and_temperature_are_what_validation_chose(folder):
    about = read_about(folder)
    assert about.threshold == 0.31
    assert about.temperature == pytest.approx(1.25)
    assert replace(about, operating_points={"0.5": 0.5}).threshold == 0.5


def test_facts_are_bound_to_their_weights(folder):
    (folder / BEST).write_bytes(b"Weights")  # of the same size
    with pytest.raises(CheckpointError, match=r"best.safetensors cannot be read: it is not the file that best.json"):
        read_about(folder)


@pytest.mark.fault("damaged checkpoint")
def test_a_flipped_bit_is_an_error_or_changes_nothing(folder):
    whole, rng, refused = (folder / FACTS).read_bytes(), np.random.default_rng(0), 0
    for bit in rng.choice(8 * len(whole), 300, replace=False):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        (folder / FACTS).write_bytes(content)
        try:
            assert read_about(folder) == ABOUT
        except CheckpointError:
            refused += 1
    assert refused > 250


def test_a_threshold_that_somebody_changed_is_noticed(folder):
    content = (folder / FACTS).read_text()
    (folder / FACTS).write_text(content.replace("0.31", "0.81"))
    with pytest.raises(CheckpointError, match=r"best.json cannot be read: it was changed after it was saved"):
        read_about(folder)


@pytest.mark.fault("damaged checkpoint")
@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 1}', "3", "\x00\x01"])
def test_something_else_is_one_clear_error(folder, text):
    (folder / FACTS).write_text(text)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_about(folder)


@pytest.mark.fault("checkpoint of a newer version")
def test_a_newer_format_is_named(folder):
    content = json.loads((folder / FACTS).read_text())
    (folder / FACTS).write_text(json.dumps({**content, "version": 99}))
    with pytest.raises(CheckpointError, match="is of format 99; this package reads up to 1"):
        read_about(folder)


def test_until_new_weights_have_their_name_both_are_told_of(folder, tmp_path):
    coming, new = tmp_path / "coming", replace(ABOUT, epoch=3)
    coming.write_bytes(b"better weights")
    write_about(folder, new, coming)
    assert read_about(folder) == ABOUT  # a kill here leaves the old model
    coming.replace(folder / BEST)
    assert read_about(folder) == new  # and here the new one
    write_about(folder, new)
    assert "before" not in json.loads((folder / FACTS).read_text())


def test_what_cannot_be_read_is_no_obstacle_to_saving(folder, tmp_path):
    (folder / FACTS).write_text("broken")
    write_about(folder, ABOUT, folder / BEST)
    assert read_about(folder) == ABOUT


def test_a_folder_without_a_model_says_what_to_do(tmp_path):
    for name in (BEST, FACTS):
        with pytest.raises(CheckpointError, match=r"holds no finished model .* Train it first"):
            read_about(tmp_path)
        (tmp_path / name).touch()


def test_random_numbers_are_left_alone(folder):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    read_about(folder)
    assert torch.rand(1) == expected
