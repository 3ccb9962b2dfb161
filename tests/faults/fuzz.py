"""Damage files at random, and see that each ends in a listed error or in a valid image: `fuzz.py KIND COUNT`.

A process of its own, so that a crash is seen, and a hang can be ended.
"""

import io
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from xray_helpers.data.catalog import build_catalog
from xray_helpers.data.download import extract
from xray_helpers.data.reader import read_image
from xray_helpers.data.synthetic import draw
from xray_helpers.files import DownloadError


def mutate(content, rng):
    """A few bytes changed, a piece cut out, doubled or filled with noise, or the end cut off."""
    data, (start, end) = bytearray(content), sorted(rng.integers(0, len(content), 2))
    way = rng.integers(0, 5)
    if way == 0:
        for place in rng.integers(0, len(data), rng.integers(1, 9)):
            data[place] = rng.integers(0, 256)
    elif way == 1:
        del data[start : start + rng.integers(1, 65)]
    elif way == 2:
        data[start:start] = data[start : start + rng.integers(1, 65)]
    elif way == 3:
        data[start : start + 32] = rng.bytes(32)
    else:
        del data[end:]
    return bytes(data)


def jpeg(seed, size=(48, 64)):
    """A small radiograph as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(draw("viral", np.random.default_rng(seed), *size).image).save(file, "JPEG", quality=85)
    return file.getvalue()


def images(folder, count, rng):
    """Mutated JPEGs: the catalog and the decoder agree that each is broken, or an image."""
    sound = [jpeg(seed) for seed in range(8)]
    for number in range(count):
        file = folder / "train" / ("NORMAL", "PNEUMONIA")[number % 2] / f"{number}.jpeg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(mutate(sound[number % 8], rng))
    for row in build_catalog(folder).itertuples():
        if row.error:
            yield row.error.split(":")[0]
        else:
            pixels = read_image(folder / row.path, 32)
            assert pixels.shape == (32, 32)
            assert pixels.dtype == np.uint8
            yield "an image"


def archives(folder, count, rng):
    """Mutated zips: each is refused with a message, or all that comes out of it is what was packed."""
    packed = {f"x/train/{label}/{label}{number}.jpeg": jpeg(number) for number in range(2) for label in ("a", "b")}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in packed.items():
            archive.writestr(name, content)
    for number in range(count):
        path, target = folder / "x.zip", folder / str(number)
        path.write_bytes(mutate(file.getvalue(), rng))
        try:
            extract(path, target)
        except DownloadError as error:
            yield type(error).__name__
        else:
            assert {out.read_bytes() for out in target.rglob("*.jpeg")} <= set(packed.values())
            yield "extracted"


if __name__ == "__main__":
    kind, count = sys.argv[1], int(sys.argv[2])
    with tempfile.TemporaryDirectory() as name:
        found = Counter({"images": images, "archives": archives}[kind](Path(name), count, np.random.default_rng(7)))
    assert found.total() == count
    print(", ".join(f"{what}: {number}" for what, number in found.most_common()))
