import pytest
import torch

from xray_helpers.device import choose_device, choose_precision


def pretend(monkeypatch, cuda=False, mps=False):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Test GPU")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "value", "reason"),
    [
        (True, True, "cuda", "cuda: Test GPU"),
        (False, True, "mps", "mps: Apple GPU"),
        (False, False, "cpu", "cpu: no GPU was found"),
    ],
)
def test_auto_takes_cuda_then_mps_then_cpu(monkeypatch, cuda, mps, value, reason):
    pretend(monkeypatch, cuda, mps)
    assert choose_device() == (value, reason)


def test_a_device_that_is_not_there_is_refused_with_those_that_are(monkeypatch):
    pretend(monkeypatch)
    with pytest.raises(ValueError, match="device='cuda': this machine has cpu"):
        choose_device("cuda")
    assert choose_device("cpu").value == "cpu"


@pytest.mark.parametrize(
    ("capabilities", "value", "reason"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16", "bf16: this CPU has avx512_bf16"),
        ({"avx512_bf16": False, "avx2": True}, "float32", "float32: this CPU has no bf16 instructions"),
    ],
)
def test_a_cpu_computes_in_bf16_only_where_its_hardware_does(monkeypatch, capabilities, value, reason):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    choice = choose_precision("auto", "cpu")
    assert choice.value == value
    assert choice.reason.startswith(reason)


def test_a_torch_that_cannot_tell_means_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert choose_precision("auto", "cpu").value == "float32"


@pytest.mark.parametrize(("supported", "value"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_without_bf16_takes_fp16(monkeypatch, supported, value):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert choose_precision("auto", "cuda").value == value


def test_what_is_asked_for_is_kept_and_fp16_stays_on_cuda():
    assert choose_precision("auto", "mps").value == "float32"
    assert choose_precision("float32", "cuda") == ("float32", "float32: as asked for")
    with pytest.raises(ValueError, match="fp16' needs device='cuda'"):
        choose_precision("fp16", "cpu")
