"""Running a network over batches, on one device or in many processes, and what its outputs mean."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch import Tensor, nn

from xray_helpers.settings import choose_device, choose_precision

PRECISIONS = {"float32": "no", "bf16": "bf16", "fp16": "fp16"}  # our names and Accelerate's
Transform = Callable[[Tensor], Tensor]  # of a whole batch
Batches = Iterable[tuple[Tensor, Any]]


def make_accelerator(device: str = "auto", precision: str = "auto") -> Accelerator:
    """Accelerate's view of this process: its device, its precision, and its place among the others.

    Args:
        device: `auto`, `cuda`, `mps` or `cpu`.
        precision: `auto`, `float32`, `bf16` or `fp16`.

    Raises:
        ValueError: this machine has no such device, or the device no such precision.
    """
    device = choose_device(device).value
    # Accelerate keeps one state per Python process, and would refuse another precision in the same notebook.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    return Accelerator(mixed_precision=PRECISIONS[choose_precision(precision, device)], cpu=device == "cpu")


def memory_layout(accelerator: Accelerator) -> torch.memory_format:
    """Channels last where it was measured to be faster: on CUDA, and in bf16 on a CPU."""
    fast = accelerator.device.type == "cuda" or accelerator.mixed_precision == "bf16"
    return torch.channels_last if fast else torch.contiguous_format


def place_network(network: Any, accelerator: Accelerator) -> Any:
    """Move a network to the accelerator's device, in the layout that is fastest there."""
    return network.to(accelerator.device, memory_format=memory_layout(accelerator))


def network_input(images: Tensor, preprocess: Transform | None, accelerator: Accelerator) -> Tensor:
    """A batch of images, on any device, as the network takes it: preprocessed, on its own device, in its layout."""
    images = images.to(accelerator.device, non_blocking=True)
    images = preprocess(images) if preprocess else images
    return images.contiguous(memory_format=memory_layout(accelerator)) if images.ndim == 4 else images


@torch.inference_mode()
def run_network(
    network: nn.Module, batches: Batches, preprocess: Transform | None = None, accelerator: Accelerator | None = None
) -> Tensor:
    """The network's outputs for all images, in their order, each batch computed once by one of the processes.

    Args:
        network: in evaluation mode, on the accelerator's device.
        batches: pairs of images (B, …) and anything; the same in every process.
        preprocess: turns a batch of images into the network's input; None where they are that already.
        accelerator: from `make_accelerator`; None computes in this process alone, in float32, where the network is.

    Returns:
        float32 (N, F) on the CPU: logits, or features of a backbone.
    """
    if accelerator is None:
        device, prepare = next(network.parameters()).device, preprocess or (lambda images: images)
        return torch.cat([network(prepare(images.to(device))).float().cpu() for images, _ in batches])
    own_part = []
    for number, (images, _) in enumerate(batches):
        if number % accelerator.num_processes == accelerator.process_index:
            with accelerator.autocast():
                outputs = network(network_input(images, preprocess, accelerator))
            own_part.append((number, outputs.float().cpu()))
    return torch.cat([outputs for _, outputs in sorted(gather_object(own_part), key=lambda part: part[0])])


def run_on_labelled(
    network: nn.Module, batches: Batches, preprocess: Transform | None = None, accelerator: Accelerator | None = None
) -> tuple[Tensor, Tensor]:
    """As `run_network`, with the labels that came with the images: outputs (N, F) and labels (N,), on the CPU."""
    labels: list[Tensor] = []

    def keep_labels() -> Iterator[tuple[Tensor, None]]:
        for images, numbers in batches:
            labels.append(numbers.cpu())
            yield images, None

    outputs = run_network(network, keep_labels(), preprocess, accelerator).clone()  # may take part in training
    return outputs, torch.cat(labels)


def probabilities(logits: Tensor) -> Tensor:
    """Of class 1, (N,), from logits (N, 1); or of each class, (N, C), from logits (N, C)."""
    return logits.squeeze(1).sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Unweighted cross-entropy: binary for logits (B, 1), else over the classes of (B, C)."""
    if logits.shape[1] == 1:
        return nn.functional.binary_cross_entropy_with_logits(logits.squeeze(1).float(), labels.float())
    return nn.functional.cross_entropy(logits.float(), labels)


def probability_table(logits: Tensor, classes: Sequence[str], calibration: Mapping[str, float]) -> pd.DataFrame:
    """Probabilities by name: for two classes probability (of the finding), calibrated and finding, else p_<class>….

    Args:
        logits: (N, 1) or (N, C).
        classes: names in the order of their numbers; of two, the second is the finding.
        calibration: slope and intercept of the calibrated log-odds (two classes).
    """
    values = probabilities(logits.double()).numpy()
    if logits.shape[1] > 1:
        return pd.DataFrame(values, columns=[f"p_{name}" for name in classes])
    calibrated = probabilities(calibration["slope"] * logits.double() + calibration["intercept"])
    return pd.DataFrame({"probability": values, "calibrated": calibrated.numpy(), "finding": finding_of(classes)})


def finding_of(classes: Sequence[str]) -> str:
    """The class that counts as ill: the second of two; `""` for more, where each is judged against the rest."""
    return classes[1] if len(classes) == 2 else ""


def judged_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """The classes whose figures are reported: the finding alone, or each of more than two, against the rest."""
    return tuple(classes[1:] if len(classes) == 2 else classes)


def prediction_table(dataset: Any, logits: Tensor, calibration: Mapping[str, float]) -> pd.DataFrame:
    """The table of `predictions-<split>.csv`: path, truth (class number), probabilities, patient, finding.

    Args:
        dataset: an `XrayDataset`.
        logits: for its images, (N, 1) or (N, C).
        calibration: as for `probability_table`.
    """
    table = pd.DataFrame({"path": dataset.paths, "truth": dataset.labels.numpy()})
    table = table.join(probability_table(logits, dataset.classes, calibration)).assign(patient=dataset.patients)
    return table[sorted(table, key="finding".__eq__)]  # the new column after those that were there before
