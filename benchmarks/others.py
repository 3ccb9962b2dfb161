"""Fine-tuning a ResNet-18 as others write it: the loop of PyTorch's tutorials, and fastai. `learning.py` runs them.

Usage: python benchmarks/others.py tutorial|fastai FOLDER, with FOLDER/train/<class> and FOLDER/val/<class>

After each epoch, a line says the AUC on validation; it ends once that is `GOAL` or more, or after `EPOCHS` epochs.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from loading import BATCH, SIZE, tutorial_transform
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import ResNet18_Weights, resnet18
from torchvision.transforms import v2

GOAL, EPOCHS = 0.98, 4


def tutorial_epoch(
    loader: DataLoader[tuple[Tensor, Tensor]],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device | str = "cpu",
) -> None:
    """One epoch as the tutorials write it."""
    model.train()
    for images, labels in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images.to(device)), labels.to(device)).backward()
        optimizer.step()


def tutorial(folder: Path) -> None:
    """PyTorch's tutorial on transfer learning, with its SGD and its transforms, in batches of 32."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    crop = v2.Compose([v2.Resize(256), v2.CenterCrop(SIZE)])
    train = ImageFolder(
        str(folder / "train"), tutorial_transform(v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip())
    )
    val = ImageFolder(str(folder / "val"), tutorial_transform(crop))
    batches = DataLoader(train, BATCH, shuffle=True, num_workers=2)
    model = resnet18(weights=ResNet18_Weights.DEFAULT)
    model.fc = nn.Linear(model.fc.in_features, len(train.classes))
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    for epoch in range(1, EPOCHS + 1):
        start = time.perf_counter()
        tutorial_epoch(batches, model, optimizer, device)
        speed = len(train) / (time.perf_counter() - start)
        model.eval()
        with torch.no_grad():
            logits = torch.cat([model(images.to(device)).cpu() for images, _ in DataLoader(val, BATCH, num_workers=2)])
        auc = roc_auc_score(val.targets, logits[:, 1] - logits[:, 0])
        print(f"epoch {epoch}: AUC {auc:.4f}, {speed:.1f} images/s")
        if auc >= GOAL:
            return


def fastai(folder: Path) -> None:
    """Fastai's `vision_learner(...).fine_tune`, with its own defaults: an epoch of the head, then all layers."""
    from fastai.callback.core import Callback, CancelFitException  # not among this project's requirements
    from fastai.vision.all import ImageDataLoaders, Resize, ResizeMethod, RocAucBinary, aug_transforms, vision_learner

    class Report(Callback):  # type: ignore[misc]
        order = 60  # after fastai's own records

        def after_epoch(self) -> None:
            auc = self.recorder.values[-1][-1]
            print(f"epoch: AUC {auc:.4f}")
            if auc >= GOAL:
                raise CancelFitException

    loaders = ImageDataLoaders.from_folder(
        folder, valid="val", bs=BATCH, num_workers=2, batch_tfms=aug_transforms(),
        item_tfms=Resize(SIZE, ResizeMethod.Squish),
    )  # fmt: skip
    learner = vision_learner(loaders, resnet18, metrics=RocAucBinary())
    with learner.no_bar(), learner.no_logging(), learner.added_cbs(Report()):
        learner.fine_tune(EPOCHS)


if __name__ == "__main__":
    {"tutorial": tutorial, "fastai": fastai}[sys.argv[1]](Path(sys.argv[2]))
