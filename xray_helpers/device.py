"""Where to compute and in which arithmetic: chosen by capability, never by timing, with the reason in a line."""

from __future__ import annotations

from typing import NamedTuple


class Choice(NamedTuple):
    """What was chosen, and why in one line."""

    value: str
    reason: str


def choose_device(device: str = "auto") -> Choice:
    """The device to compute on: CUDA, then MPS, then CPU, by capability and never by timing.

    Raises:
        ValueError: `device` was asked for by name and this machine has none.
    """
    import torch  # takes seconds; see `settings.seed_everything`

    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    there = {"cuda": cuda, "mps": "Apple GPU" if torch.backends.mps.is_available() else "", "cpu": "always there"}
    if device == "auto":
        best = next(name for name, what in there.items() if what)
        return Choice(best, f"{best}: {'no GPU was found' if best == 'cpu' else there[best]}")
    if not there[device]:
        present = ", ".join(name for name, what in there.items() if what)
        raise ValueError(f"device={device!r}: this machine has {present}.")
    return Choice(device, f"{device}: as asked for")


def choose_precision(precision: str, device: str) -> Choice:
    """The arithmetic for `device` (`cuda`, `mps` or `cpu`): bf16 where the hardware has it.

    Raises:
        ValueError: fp16 was asked for away from CUDA, where its loss scaling is not supported.
    """
    import torch

    if precision != "auto":
        if precision == "fp16" and device != "cuda":
            raise ValueError(f"precision='fp16' needs device='cuda'; on {device} use bf16 or float32.")
        return Choice(precision, f"{precision}: as asked for")
    if device == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Choice("bf16", "bf16: this GPU computes in it")
        return Choice("fp16", "fp16: this GPU has no bf16")
    if device == "mps":
        return Choice("float32", "float32: the safe choice on Apple GPUs")
    # Early releases that we support cannot tell; they get float32.
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    found = next((name for name in ("amx_bf16", "avx512_bf16") if capabilities.get(name)), "")
    if found:
        return Choice("bf16", f"bf16: this CPU has {found}")
    return Choice("float32", "float32: this CPU has no bf16 instructions that torch reports")
