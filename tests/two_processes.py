"""Outputs, losses and the first gradient of a fixed model, and a whole run, as one process or several compute them.

Usage: two_processes.py OUTPUT FOLDER; tests/training/test_train.py launches it.
"""

import sys
from pathlib import Path

import torch
from networks import use_tiny_networks

from xray_helpers.inference import classification_loss, make_accelerator, run_network
from xray_helpers.training.engine import fit, train_one_epoch, validate
from xray_helpers.training.model import build_model


def sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1)


def main() -> None:
    use_tiny_networks()
    accelerator = make_accelerator("cpu", "float32")
    torch.manual_seed(0)
    batches = [(torch.rand(size, 3, 32, 32), torch.randint(0, 2, (size,))) for size in (7, 4, 5)]
    model = build_model("resnet18", 1, "none")
    torch.nn.init.normal_(model.fc.weight)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    outputs = run_network(model.eval(), batches, None, accelerator)
    validated, _, _ = validate(model, batches, accelerator)
    sizes = []

    def loss(logits, labels):
        sizes.append(len(labels))
        return classification_loss(logits, labels)

    # Plain steps of rate 1 over one batch: what the weights move by is the gradient.
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    network = accelerator.prepare(model) if accelerator.num_processes > 1 else model
    stepper = accelerator.prepare(optimizer)
    trained = train_one_epoch(network, batches[:1], stepper, schedule, accelerator, loss=loss, update_statistics=False)
    seen = accelerator.gather(torch.tensor(sizes)).tolist()

    # A whole run. Pretrained statistics stay, so that each process normalises its share as one would the whole batch.
    torch.manual_seed(1)
    model = build_model("resnet18", 1, "none")
    model.weights = "start.pth"
    run = fit(
        model, (batches, batches), sys.argv[2], 2, device="cpu", precision="float32",
        optimizer=sgd,
    )  # fmt: skip
    if accelerator.is_main_process:
        gradients = {name: start[name] - value for name, value in model.state_dict().items()}
        found = {"outputs": outputs, "validated": validated, "trained": trained, "gradients": gradients, "seen": seen}
        found |= {"losses": run.history[["train_loss", "val_loss"]].to_numpy().tolist(), "best": run.model.state_dict()}
        torch.save(found, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
