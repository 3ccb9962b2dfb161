"""Where a network looks: maps of its evidence, how often they point at a lesion, and what it knows from the borders."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from captum.attr import LayerGradCam
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy.ndimage import binary_dilation
from torch import Tensor, nn
from torchvision.models import ResNet

from xray_helpers.data.reader import to_square
from xray_helpers.data.shortcuts import FRAME
from xray_helpers.data.synthetic import draw
from xray_helpers.data.transforms import GRAY, to_unit
from xray_helpers.inference import judged_classes, run_network
from xray_helpers.metrics import auc_interval, share_interval

BATCH = 32
CORNER = 0.2  # of the side


def activation_maps(model: ResNet, images: Tensor, target: ArrayLike = 0, block: str = "layer4") -> Tensor:
    """What each place of an image adds to an output: Grad-CAM (Selvaraju et al. 2017), unclipped.

    Between its last block and the output a ResNet only averages and multiplies. So the map is exact there: its sum and
    the head's bias are the output (class activation mapping, Zhou et al. 2016). An earlier block gives a finer map, on
    a scale of its own.

    Args:
        model: from `load_model`.
        images: uint8 (N, 1, S, S).
        target: number of the output, or one for each image, (N,); with one output, 0 is that of the finding.
        block: `layer4`, or `layer3` for twice as many cells a side.

    Returns:
        float32 (N, S/32, S/32) on the CPU, for `layer3` (N, S/16, S/16), in log-odds (for more classes: in logits);
        below 0 speaks against it.
    """
    method, device = LayerGradCam(model, getattr(model, block)), next(model.parameters()).device
    targets = torch.tensor(np.asarray(target), device=device).expand(len(images)).split(BATCH)  # a copy, of any array
    batches = (model.info.preprocess(part.to(device)) for part in images.split(BATCH))
    maps = [method.attribute(batch, target=each).detach().cpu() for batch, each in zip(batches, targets, strict=True)]
    return torch.cat(maps).squeeze(1)


def enlarge(maps: Tensor, size: int) -> Tensor:
    """Maps (N, h, w) drawn smoothly to the size of the images, (N, S, S), so that a peak may lie between two cells."""
    return nn.functional.interpolate(maps.unsqueeze(1), (size, size), mode="bicubic").squeeze(1)


class Lesions(NamedTuple):
    """Synthetic radiographs whose lesions are known: images uint8 (N, 1, S, S); lesions and lungs bool (N, S, S)."""

    images: Tensor
    lesions: NDArray[np.bool_]
    lungs: NDArray[np.bool_]


def draw_lesions(count: int, size: int, seed: int, resize: str = "squash", strength: float = 1.0) -> Lesions:
    """Bacterial phantoms, each of another patient and without planted shortcuts.

    Args:
        count: how many.
        size: side in pixels.
        seed: of the drawings.
        resize: how they become square.
        strength: how dense the lesions are.
    """
    phantoms = [draw("bacterial", np.random.default_rng((seed, number)), strength=strength) for number in range(count)]
    parts = [[to_square(Image.fromarray(part).convert("L"), size, resize) for part in each[:3]] for each in phantoms]
    images, lesions, lungs = np.array(parts).swapaxes(0, 1)  # (N, S, S) each
    return Lesions(torch.from_numpy(images).unsqueeze(1), lesions > 127, lungs > 127)


def pointing_game(maps: Tensor, known: Lesions, grown: float = 0.05) -> dict[str, object]:
    """How often the strongest evidence in the lungs lies in the lesion.

    The pointing game of Zhang et al. 2018 ("Top-down neural attention by excitation backprop"), played inside the
    lungs: the cells of a map are coarse, so that one at the edge may reach far outside; and the rate by chance is that
    of a place in the lungs, too.

    Args:
        maps: from `activation_maps`, (N, h, w).
        known: the same phantoms.
        grown: the lesion is grown by this part of the side, since maps are coarse.

    Returns:
        n; accuracy with its 95% Wilson interval; chance: mean share of the lungs that the grown lesions cover; hits,
        (N,).
    """
    size = known.lesions.shape[1]
    inside = np.where(known.lungs, enlarge(maps, size).numpy(), -np.inf).reshape(len(maps), -1)  # (N, S * S)
    grow = max(1, round(grown * size))
    larger = np.stack([binary_dilation(lesion, iterations=grow) for lesion in known.lesions])
    hits = larger.reshape(len(maps), -1)[np.arange(len(maps)), inside.argmax(axis=1)]
    chance = ((larger & known.lungs).sum(axis=(1, 2)) / known.lungs.sum(axis=(1, 2))).mean()
    accuracy = share_interval(int(hits.sum()), len(hits))
    return {"n": len(maps), "accuracy": accuracy, "chance": float(chance), "hits": hits}


def occlusions(size: int) -> dict[str, Tensor]:
    """Which pixels to hide, bool (S, S) each, by the name of the part; the first hides nothing.

    Args:
        size: side of the images in pixels, S.
    """
    place = (torch.arange(size) + 0.5) / size
    edge = torch.minimum(place, 1 - place)  # distance from the nearer edge, as part of the side
    frame, corners = torch.minimum(edge[:, None], edge) < FRAME, torch.maximum(edge[:, None], edge) < CORNER
    parts = {"corners erased": corners, "frame erased": frame, "all but the frame erased": ~frame}
    return {"nothing erased": torch.zeros_like(frame)} | parts


def log_odds(logits: Tensor) -> Tensor:
    """Of the finding, float64 (N, 1), from logits (N, 1); of each class against the rest, (N, C), from (N, C)."""
    values, own = logits.double(), torch.eye(logits.shape[1], dtype=torch.bool)
    if logits.shape[1] == 1:
        return values
    return values - values.unsqueeze(1).masked_fill(own, -torch.inf).logsumexp(dim=2)


def occlusion_check(model: ResNet, images: Tensor, truth: ArrayLike, patients: ArrayLike) -> pd.DataFrame:
    """What is left of a model's skill when a part of `occlusions` is hidden: corners, borders, all but the borders.

    Lungs lie inside the frame (the outer tenth of each side). A model that needs only lungs loses nothing without it,
    and is at chance when nothing else is left.

    Args:
        model: from `load_model`.
        images: uint8 (N, 1, S, S).
        truth: class numbers, (N,).
        patients: whose image each is, (N,).

    Returns:
        One row per part and class, the finding alone where there are two: part, class, auc, low and high (against the
        rest, 95% over patients), moved (mean change of the class's log-odds, whatever its sign), turned (share of
        decisions at 0.5 that turn).
    """
    rows, whole, classes = list[tuple[object, ...]](), np.zeros(0), model.info.classes
    for part, hidden in occlusions(images.shape[-1]).items():
        # What is hidden gets the gray that the network takes for nothing.
        batches = ((torch.where(hidden, GRAY, to_unit(batch)), None) for batch in images.split(BATCH))
        odds = log_odds(run_network(model, batches, model.info.preprocess)).numpy()  # (N, 1) or (N, C)
        whole = whole if rows else odds
        for name, now, before in zip(judged_classes(classes), odds.T, whole.T, strict=True):
            auc = auc_interval(np.asarray(truth) == classes.index(name), now, patients)
            moved, turned = np.abs(now - before).mean(), ((now >= 0) != (before >= 0)).mean()
            rows.append((part, name, *auc.values(), float(moved), float(turned)))
    return pd.DataFrame(rows, columns=["part", "class", "auc", "low", "high", "moved", "turned"])
