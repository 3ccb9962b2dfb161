import io

import numpy as np
import pytest
import torch
from PIL import Image

from xray_helpers.jpeg import jpeg


@pytest.mark.parametrize("quality", [15, 40, 75, 95])
def test_jpeg_does_what_a_real_encoder_does(batch, quality):
    ours = jpeg(batch / 255, torch.full((8,), float(quality))) * 255
    for image, made in zip(batch, ours, strict=True):
        stream = io.BytesIO()
        Image.fromarray(image[0].numpy()).save(stream, "JPEG", quality=quality)
        real = np.asarray(Image.open(stream)).astype(float)
        # The encoder computes with integers: a level more or less here and there.
        assert np.abs(real - made[0].numpy()).mean() < min(0.4, 0.5 * np.abs(real - image[0].numpy()).mean())


def test_jpeg_takes_each_image_at_its_own_quality(batch):
    pair = batch[:1].expand(2, -1, -1, -1) / 255
    low, high = jpeg(pair, torch.tensor([10.0, 95.0]))
    assert torch.equal(low[None], jpeg(pair[:1], torch.tensor([10.0])))
    assert (low - pair[0]).abs().mean() > 5 * (high - pair[0]).abs().mean()


def test_a_side_that_is_no_multiple_of_eight_keeps_its_size():
    images = torch.rand(2, 1, 37, 20)
    assert jpeg(images, torch.tensor([90.0, 90.0])).shape == (2, 1, 37, 20)
