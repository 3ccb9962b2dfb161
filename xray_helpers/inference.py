"""Running a network over batches: on one device or many processes, in the arithmetic of the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, gather_object
from torch import Tensor, nn

from xray_helpers.device import choose_device, choose_precision
from xray_helpers.settings import Settings
from xray_helpers.transforms import Preparation

PRECISIONS = {"float32": "no", "bf16": "bf16", "fp16": "fp16"}  # ours and Accelerate's


def start_accelerator(settings: Settings) -> Accelerator:
    """Accelerate's view of this process: device, precision, and its place among the others.

    A batch is shared out between processes, so that a run means the same for any number of them.

    Raises:
        ValueError: the device is missing, or the batch cannot be shared out evenly.
    """
    device = choose_device(settings.device).value
    precision = choose_precision(settings.precision, device).value
    # Accelerate keeps one state a Python process, and would refuse another precision in the same notebook.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    accelerator = Accelerator(
        mixed_precision=PRECISIONS[precision],
        cpu=device == "cpu",
        dataloader_config=DataLoaderConfiguration(split_batches=True),
    )
    if settings.batch_size % accelerator.num_processes:
        raise ValueError(
            f"batch_size={settings.batch_size} cannot be shared out to {accelerator.num_processes} processes evenly"
        )
    return accelerator


def memory_layout(accelerator: Accelerator) -> torch.memory_format:
    """Channels last where it was measured faster: on CUDA, and in bf16 on a CPU."""
    fast = accelerator.device.type == "cuda" or accelerator.mixed_precision == "bf16"
    return torch.channels_last if fast else torch.contiguous_format


def network_input(images: Tensor, prepare: Preparation, accelerator: Accelerator) -> Tensor:
    """Gray images (B, 1, S, S), on any device, as the network takes them: float32 (B, 3, S, S) on its own device."""
    return prepare(images.to(accelerator.device)).contiguous(memory_format=memory_layout(accelerator))


@torch.inference_mode()
def run_network(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Any]],
    prepare: Preparation,
    accelerator: Accelerator | None = None,
) -> Tensor:
    """The network's outputs for all images, in their order, each computed once by one of the processes.

    Args:
        network: in evaluation mode, on the accelerator's device.
        batches: images (B, 1, S, S), and anything beside them; the same in every process.
        prepare: what turns images into the network's input.
        accelerator: from `start_accelerator`; None computes in this process alone, in float32, where the network is.

    Returns:
        float32 (N, F) on the CPU: logits, or features of a backbone.
    """
    if accelerator is None:
        device = next(network.parameters()).device
        return torch.cat([network(prepare(images.to(device))).cpu() for images, _ in batches])
    mine = []
    for number, (images, _) in enumerate(batches):
        if number % accelerator.num_processes == accelerator.process_index:
            with accelerator.autocast():
                mine.append((number, network(network_input(images, prepare, accelerator)).float().cpu()))
    parts = gather_object(mine)
    return torch.cat([outputs for _, outputs in sorted(parts, key=lambda part: part[0])])


def probabilities(logits: Tensor) -> Tensor:
    """Of class 1, (N,), from logits (N, 1); or of each class, (N, C), from logits (N, C)."""
    return logits.squeeze(1).sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Unweighted cross-entropy: binary for logits (B, 1), else over the classes of (B, C)."""
    if logits.shape[1] == 1:
        return nn.functional.binary_cross_entropy_with_logits(logits.squeeze(1).float(), labels.float())
    return nn.functional.cross_entropy(logits.float(), labels)


def probability_table(logits: Tensor, classes: Sequence[str], calibration: Mapping[str, float]) -> pd.DataFrame:
    """Probabilities by name: for two classes probability (of the second) and calibrated, else p_<class>….

    Args:
        logits: (N, 1) or (N, C).
        classes: names in the order of their numbers.
        calibration: slope and intercept of the calibrated log-odds (two classes).
    """
    values = probabilities(logits.double()).numpy()
    if logits.shape[1] > 1:
        return pd.DataFrame(values, columns=[f"p_{name}" for name in classes])
    calibrated = probabilities(calibration["slope"] * logits.double() + calibration["intercept"])
    return pd.DataFrame({"probability": values, "calibrated": calibrated.numpy()})


def predictions(
    paths: Sequence[str], labels: Tensor, logits: Tensor, classes: Sequence[str], calibration: Mapping[str, float]
) -> pd.DataFrame:
    """The table of `predictions-<split>.csv`: path, truth (class number, from `labels`), and `probability_table`."""
    table = pd.DataFrame({"path": list(paths), "truth": labels.numpy()})
    return table.join(probability_table(logits, classes, calibration))
