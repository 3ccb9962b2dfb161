"""The same radiograph in several files: resized, compressed again, mirrored or slightly turned."""

from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import fft, sparse
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, normalize

from xray_helpers.data.reader import find_whites, read_image

SIZE, MIDDLE = 64, 48  # sides in pixels: of the images, and of their middle, which is compared
TURNS = (0, -2, 2, -4, 4)  # degrees; any turn by up to 5° is within 1° of one of them
LOW, HIGH = 8, 24  # frequencies: those below LOW make the hash, those below HIGH are correlated
FAR = 10  # bits of 63 by which the hashes of candidates differ at most
ALIKE = 0.93  # correlation that confirms a candidate; of two radiographs up to 0.78 was seen, of phantoms 0.91


def find_near_duplicates(root: Path, catalog: pd.DataFrame) -> pd.Series:
    """The catalog's column `near`: an id that the images of a group share, `""` for images without near duplicates.

    Args:
        root: the folder that the catalog's paths are relative to.
        catalog: rows with the columns path, error, width, height, pixel_hash and those that `find_whites` reads.
            Unreadable images and those with a side below 32 pixels are not compared.
    """
    rows = catalog[(catalog["error"] == "") & (catalog[["width", "height"]].min(axis=1) >= SIZE // 2)]
    near, whites = pd.Series("", catalog.index), find_whites(catalog)
    distinct = rows.drop_duplicates("pixel_hash")  # of many copies of one image every pair would be found
    if len(rows):
        with ThreadPoolExecutor() as pool:
            images = list(pool.map(lambda path: read_image(root / path, SIZE, whites=whites), distinct["path"]))
        first = distinct["pixel_hash"].groupby(near_duplicates(np.stack(images))).transform("first")
        shared = rows["pixel_hash"].map(dict(zip(distinct["pixel_hash"], first, strict=True)))
        near.update(shared[shared.groupby(shared).transform("size") > 1])
    return near


def near_duplicates(images: NDArray[np.uint8]) -> NDArray[np.int_]:
    """Group the images that show the same radiograph: resized, compressed again, mirrored, or turned by up to 5°.

    Candidates are pairs whose perceptual hashes (pHash: which of the lowest frequencies of the cosine transform are
    above their median) nearly agree, also with one image mirrored or turned. They are confirmed by the correlation of
    their gradients once so aligned, which two radiographs do not reach even if they show one patient.

    Args:
        images: uint8 (N, 64, 64), from `read_image`.

    Returns:
        The number of each image's group, (N,).
    """
    gray = torch.from_numpy(images).float()
    hashes, details = _compare(_frequencies(gray, 0))
    mirrored = torch.tensor([1.0, -1.0]).repeat(HIGH // 2)  # mirroring turns the sign of every other frequency
    pairs = []
    for turn, sign in product(TURNS, (mirrored.abs(), mirrored)):
        other_hashes, other_details = _compare(_frequencies(gray, turn) * sign)
        for start in range(0, len(images), 1000):  # of ±1, so that a product is the equal bits less the others
            agree = hashes[start : start + 1000] @ other_hashes[start:].T >= LOW**2 - 1 - 2 * FAR
            first, second = (torch.triu(agree, diagonal=1).nonzero() + start).T
            for some, others in zip(first.split(10_000), second.split(10_000), strict=True):
                alike = (details[some] * other_details[others]).sum(1) > ALIKE
                pairs.append(torch.stack([some[alike], others[alike]]))
    one, two = torch.cat(pairs, dim=1).numpy()
    graph = sparse.csr_array((np.ones(len(one)), (one, two)), shape=(len(images),) * 2)
    return np.asarray(sparse.csgraph.connected_components(graph, directed=False)[1])


def _frequencies(gray: Tensor, degrees: float) -> Tensor:
    """The cosine transform of the middles of images (N, 64, 64) that are turned, (N, 24, 24)."""
    cosine, sine = (float(part(np.deg2rad(degrees))) * MIDDLE / SIZE for part in (np.cos, np.sin))
    turn = torch.tensor([[[cosine, -sine, 0.0], [sine, cosine, 0.0]]])
    grid = affine_grid(turn, [1, 1, MIDDLE, MIDDLE], align_corners=False)
    middle = grid_sample(gray[None], grid, align_corners=False)[0]  # as the channels of one image: one grid for all
    return torch.from_numpy(fft.dctn(middle.numpy(), axes=(1, 2), norm="ortho")[:, :HIGH, :HIGH])


def _compare(frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Hashes of -1 and 1, (N, 63), and gradients of length 1, (N, 576): what two images are compared by."""
    low = frequencies[:, :LOW, :LOW].flatten(1)[:, 1:]
    row = torch.arange(HIGH, dtype=torch.float32)
    details = frequencies * torch.hypot(row[:, None], row)  # a gradient grows with the frequency
    return torch.where(low > low.median(1, keepdim=True).values, 1.0, -1.0), normalize(details.flatten(1))
