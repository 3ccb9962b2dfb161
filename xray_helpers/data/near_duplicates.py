"""The same radiograph in several files: resized, compressed again, mirrored or slightly turned."""

from concurrent.futures import ThreadPoolExecutor
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import fft, sparse
from torch import Tensor
from torch.nn.functional import normalize
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import center_crop, rotate

from xray_helpers.data.reader import find_whites, read_image
from xray_helpers.settings import choose_precision

SIZE, MIDDLE = 64, 48  # sides in pixels: of the images, and of their middle, which is compared
TURNS = (0, -2, 2, -4, 4)  # degrees; any turn by up to 5° is within 1° of one of them
FREQUENCIES = 24  # the lowest ones on each axis
ALIKE = 0.93  # correlation of near duplicates; of two radiographs up to 0.78 was seen, of phantoms 0.91
ROUNDING = 0.02  # more than bf16 moves a correlation
BLOCK = 1000  # images that are compared with as many others at once


def find_near_duplicates(root: Path, catalog: pd.DataFrame) -> pd.Series:
    """The catalog's column `near`: an id that the images of a group share, `""` for images without near duplicates.

    Args:
        root: the folder that the catalog's paths are relative to.
        catalog: rows with the columns path, error, width, height, pixel_hash and those that `find_whites` reads.
            Unreadable images and those with a side below 32 pixels are not compared.
    """
    rows = catalog[(catalog["error"] == "") & (catalog[["width", "height"]].min(axis=1) >= SIZE // 2)]
    if rows.empty:
        return pd.Series("", catalog.index)
    whites, distinct = find_whites(catalog), rows.drop_duplicates("pixel_hash")  # of copies, every pair would be found
    with ThreadPoolExecutor() as pool:
        images = list(pool.map(lambda path: read_image(root / path, SIZE, whites=whites), distinct["path"]))
    first = distinct["pixel_hash"].groupby(near_duplicates(np.stack(images))).transform("first")
    shared = rows["pixel_hash"].map(first.set_axis(distinct["pixel_hash"]))
    return shared[shared.duplicated(keep=False)].reindex(catalog.index, fill_value="")


def near_duplicates(images: NDArray[np.uint8]) -> NDArray[np.int_]:
    """Group the images that show the same radiograph: resized, compressed again, mirrored, or turned by up to 5°.

    All pairs are compared, also with one image mirrored or turned, by the correlation of the gradients of their middles
    at the lowest frequencies of the cosine transform; two radiographs do not reach that of near duplicates even if they
    show one patient. The time grows with the square of the number of images: a second or two for 5,000 on two cores.

    Args:
        images: uint8 (N, 64, 64), from `read_image`.

    Returns:
        The number of each image's group, (N,).
    """
    exact, pairs, blocks = _gradients(images, 0), [], range(0, len(images), BLOCK)
    # Where the processor computes in bf16, its rounding (below 0.01) chooses the pairs that are then compared exactly.
    dtype = torch.bfloat16 if choose_precision("auto", "cpu") == "bf16" else torch.float32
    rough = [part.to(dtype) for part in exact]
    for turn in TURNS:
        turned = _gradients(images, turn)
        turned_rough = [part.to(dtype) for part in turned]
        for row, column in combinations_with_replacement(blocks, 2):
            even, odd = (
                a[row : row + BLOCK] @ b[column : column + BLOCK].T for a, b in zip(rough, turned_rough, strict=True)
            )
            first, second = (even + odd.abs() > ALIKE - ROUNDING).nonzero().T + torch.tensor([[row], [column]])
            # Mirroring turns the sign of every other frequency, so the larger of even + odd and even - odd counts.
            even, odd = ((a[first] * b[second]).sum(dim=1) for a, b in zip(exact, turned, strict=True))
            pairs.append(torch.stack([first, second])[:, (even + odd.abs() > ALIKE) & (first < second)])
    one, two = torch.cat(pairs, dim=1).numpy()
    graph = sparse.csr_array((np.ones(len(one)), (one, two)), shape=(len(images),) * 2)
    return np.asarray(sparse.csgraph.connected_components(graph, directed=False)[1])


def _gradients(images: NDArray[np.uint8], degrees: float) -> tuple[Tensor, Tensor]:
    """The frequencies of the gradients of turned images, at even and at odd columns, (N, 288) each; of length 1."""
    row = torch.arange(FREQUENCIES, dtype=torch.float32)
    found = []
    for part in torch.from_numpy(images).split(200):  # as the channels of one image; turning copies them
        middle = center_crop(rotate(part.float(), degrees, InterpolationMode.BILINEAR), [MIDDLE, MIDDLE])
        frequencies = torch.from_numpy(fft.dctn(middle.numpy(), axes=(1, 2), norm="ortho"))
        low = frequencies[:, :FREQUENCIES, :FREQUENCIES] * torch.hypot(row[:, None], row)  # a gradient grows with them
        found.append(normalize(low.flatten(1)).view_as(low))
    whole = torch.cat(found)
    return whole[:, :, ::2].flatten(1), whole[:, :, 1::2].flatten(1)
