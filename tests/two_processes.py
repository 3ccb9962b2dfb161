"""Outputs and the first gradient of a fixed model, as one process or several see them; test_training launches it.

Usage: two_processes.py DATA OUTPUT
"""

import sys
from pathlib import Path

import torch

from xray_helpers.dataset import make_loaders
from xray_helpers.inference import loss_of, run_network, start_accelerator
from xray_helpers.settings import Settings
from xray_helpers.steps import make_optimizer, start_model
from xray_helpers.transforms import Preparation


def main() -> None:
    settings = Settings(
        data=sys.argv[1], image_size=64, batch_size=8, weights="none", device="cpu", precision="float32"
    )
    accelerator = start_accelerator(settings)
    loaders = make_loaders(settings)
    prepare = Preparation(64)
    model, _ = start_model(settings, loaders)
    torch.nn.init.normal_(model.fc.weight, generator=torch.Generator().manual_seed(0))
    outputs = run_network(model.eval(), loaders.val, prepare, accelerator)
    network, _, batches = accelerator.prepare(model, make_optimizer(model, settings, "none"), loaders.train)
    images, labels = next(iter(batches))
    accelerator.backward(loss_of(network(prepare(images)), labels))  # batch normalisation stays in evaluation mode
    seen = accelerator.gather(torch.tensor([len(images)])).tolist()
    if accelerator.is_main_process:
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        torch.save({"outputs": outputs, "gradients": gradients, "seen": seen}, Path(sys.argv[2]))


if __name__ == "__main__":
    main()
