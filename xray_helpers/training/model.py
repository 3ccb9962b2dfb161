"""A pretrained ResNet with a new head, its layers in groups by depth, and which of them learn."""

import io
import socket
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import ResNet, get_model, get_model_weights

from xray_helpers.files import WeightsError, file_digest, print_once
from xray_helpers.settings import ARCHS

DOWNLOAD_TIMEOUT = 10.0  # seconds to wait for the server that holds the weights
CACHE = "the folder hub/checkpoints of PyTorch's cache (~/.cache/torch, or TORCH_HOME)"
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params")
GROUPS = ("stem", "layer1", "layer2", "layer3", "layer4", "head")


def build_model(arch: str = "resnet18", num_outputs: int = 1, weights: str = "imagenet") -> ResNet:
    """A ResNet of torchvision with a new linear head.

    The head starts at zero, so that the first prediction is its bias alone. In the residual networks of He et al.
    2016, layers near the input see edges and texture, and layers near the head the shape of things.

    Args:
        arch: a ResNet by torchvision's name, such as `resnet18`.
        num_outputs: 1 for two classes, else the number of classes.
        weights: `imagenet` (from torchvision's cache, or downloaded into it), `none`, or a file with a state dict
            (`.safetensors`, or whatever `torch.load` reads without running code), also one that is wrapped as training
            scripts do (`state_dict`, `model`, prefixes such as `module.`).

    Returns:
        A model that maps float (B, 3, S, S) to logits (B, num_outputs); `model.weights` names what it starts from:
        `imagenet`, `none` or the file's name. `model.weights_sha256` is the file's SHA-256, `""` without a file. Where
        torchvision's file is not the published one, a note is printed.

    Raises:
        ValueError: an unknown architecture, or fewer than one output.
        WeightsError: the weights cannot be reached or read, or belong to another architecture.
    """
    if arch not in ARCHS:
        raise ValueError(f"arch={arch!r}: expected one of {', '.join(ARCHS)}")
    if num_outputs < 1:
        raise ValueError(f"num_outputs={num_outputs}: expected 1 (two classes) or the number of classes")
    model: ResNet = get_model(arch, weights=None)
    file = _cached_file(arch) if weights == "imagenet" else Path(weights).expanduser()
    if weights == "imagenet":
        _fill(model, imagenet_weights(arch), f"the ImageNet weights of {arch}")
    elif weights != "none":
        _fill(model, _read(file), file.name)
    model.arch, model.weights = arch, Path(weights).name  # a path would name the machine
    known = weights != "none" and file.is_file()
    model.weights_sha256 = file_digest(file) if known else ""
    if reason := _unpublished(model):
        print_once(f"note: these are not torchvision's published ImageNet weights: {reason}")
    model.fc = nn.Linear(model.fc.in_features, num_outputs)
    nn.init.zeros_(model.fc.weight)
    nn.init.zeros_(model.fc.bias)
    return model


def weights_origin(model: Any) -> str:
    """What a network from `build_model`, `initial_model` or `load_model` starts from, in words."""
    if hasattr(model, "run_name"):
        return f"the weights of the run {model.run_name}"
    if model.weights != "imagenet":
        return "random weights" if model.weights == "none" else f"the weights in {model.weights}"
    if reason := _unpublished(model):
        return f"ImageNet weights that are not the published ones ({reason})"
    return "torchvision's ImageNet weights"


def _unpublished(model: Any) -> str:
    """Why a network's ImageNet weights are not the published ones; `""` where they are, or where it is not known."""
    name = _cached_file(model.arch).name  # torchvision's names end in the first digits of the SHA-256
    promised, digest = name.rpartition("-")[2].partition(".")[0], model.weights_sha256
    if model.weights != "imagenet" or not digest or digest.startswith(promised):
        return ""
    return f"the SHA-256 of {name} should begin with {promised}, and begins with {digest[:8]}"


def _cached_file(arch: str) -> Path:
    """Where torchvision keeps its best ImageNet weights, once downloaded."""
    url: str = get_model_weights(arch).DEFAULT.url
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def imagenet_weights(arch: str) -> Mapping[str, Any]:
    """Torchvision's best ImageNet weights: from its cache, or downloaded into it.

    Raises:
        WeightsError: the server does not answer, or the cached file is damaged; the message says what to do.
    """
    entry, default_timeout = get_model_weights(arch).DEFAULT, socket.getdefaulttimeout()
    name = _cached_file(arch).name
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)  # torch's downloader sets none, and would wait for a silent server
    try:
        with redirect_stderr(io.StringIO()):  # it would print where the cache lies on this machine
            state: Mapping[str, Any] = entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except OSError:
        raise WeightsError(
            f"The ImageNet weights of {arch} cannot be reached. With a network, they are downloaded. Without one, "
            f"bring {name} from {entry.url} into {CACHE}. Or set WEIGHTS to a file of your own, or to none."
        ) from None
    except Exception as error:  # noqa: BLE001 - on damaged bytes torch raises anything
        reason = f"cannot be read ({type(error).__name__}): it may be cut off. Delete it, and run this again."
        raise WeightsError(f"{name}, in {CACHE}, {reason}") from None
    finally:
        socket.setdefaulttimeout(default_timeout)
    return state


def _read(file: Path) -> Mapping[str, Any]:
    """A state dict from a file, without running anything in it."""
    try:
        safe = file.suffix == ".safetensors"
        state = load_file(file) if safe else torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - on damaged bytes torch raises anything, and advises to run the file
        reason = "it is damaged, or holds more than tensors, which could run code, and was not opened"
        raise WeightsError(f"{file.name} cannot be read as a state dict ({type(error).__name__}): {reason}") from None
    if not isinstance(state, Mapping):
        raise WeightsError(f"{file.name} holds a {type(state).__name__}, not a state dict")
    return _unwrap(state, file.name)


def _unwrap(state: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Take off what training scripts wrap around a ResNet's state dict: entries that hold it, prefixes of its names.

    Raises:
        WeightsError: it holds more than one ResNet.
    """
    said = ""
    while entry := next((key for key in WRAPPERS if isinstance(state.get(key), Mapping)), ""):
        state, said = state[entry], f"{said} taken out of {entry!r};"
    stems = (key.removesuffix("conv1.weight") for key in state if key.endswith("conv1.weight"))
    prefixes = [stem for stem in stems if any(key.startswith(f"{stem}layer1.") for key in state)]
    if len(prefixes) > 1:
        raise WeightsError(f"{name} holds {len(prefixes)} networks ({', '.join(prefixes)}): save one of them alone")
    if prefix := "".join(prefixes):
        kept = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        others = f" and {len(state) - len(kept)} entries that lack it" if len(kept) < len(state) else ""
        said += f" without the prefix {prefix!r}{others};"
        state = kept
    if said:
        print_once(f"note: {name}:{said.rstrip(';')}")
    return state


def _fill(model: ResNet, state: Mapping[str, Any], name: str) -> None:
    """Copy everything but the head, which is new."""
    wanted = {key: value for key, value in model.state_dict().items() if not key.startswith("fc.")}
    given = {key: value for key, value in state.items() if not key.startswith("fc.")}
    if reason := misfit(wanted, given):
        raise WeightsError(f"{name} does not fit this architecture: {reason}")
    model.load_state_dict(given, strict=False)


def misfit(wanted: Mapping[str, Tensor], given: Mapping[str, Any]) -> str:
    """Why one state dict cannot take the place of another; `""` when it can."""
    missing, extra = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    other = sorted(key for key in wanted.keys() & given.keys() if wanted[key].shape != given[key].shape)
    if not (missing or extra or other):
        return ""
    counts = f"{len(missing)} entries are missing, {len(extra)} unknown and {len(other)} of another shape"
    return f"{counts}, such as {(missing or extra or other)[0]}"


def outputs_for(classes: Sequence[str]) -> int:
    """Outputs of a network for these classes: 1 for two of them, else one each."""
    return 1 if len(classes) == 2 else len(classes)


def layer_groups(model: ResNet) -> dict[str, nn.ModuleList]:
    """The layers by depth, from the stem to the head; `layer_groups(model)["stem"].requires_grad_(False)` freezes."""
    parts = [[model.conv1, model.bn1], [model.layer1], [model.layer2], [model.layer3], [model.layer4], [model.fc]]
    return {name: nn.ModuleList(modules) for name, modules in zip(GROUPS, parts, strict=True)}


def freeze(model: ResNet, last: str) -> None:
    """Keep the weights of the layers from the stem to `last`, one of `GROUPS`, as they are; `none` keeps none."""
    for name in GROUPS[: GROUPS.index(last) + 1] if last != "none" else ():
        layer_groups(model)[name].requires_grad_(False)


def parameter_groups(model: ResNet, learning_rate: float, decay: float = 0.5) -> list[dict[str, Any]]:
    """Groups for an optimizer: the head at `learning_rate`, each group before it at `decay` of the next (ULMFiT).

    Howard and Ruder 2018. Frozen parameters are left out.
    """
    groups: list[dict[str, Any]] = []
    for depth, (name, modules) in enumerate(reversed(layer_groups(model).items())):
        if parameters := [parameter for parameter in modules.parameters() if parameter.requires_grad]:
            groups.append({"name": name, "params": parameters, "lr": learning_rate * decay**depth})
    return groups


def train_mode(model: nn.Module, update_statistics: bool = True) -> None:
    """Training mode, in which batch normalisation that is frozen keeps its statistics.

    Args:
        model: any network, wrapped or not.
        update_statistics: let the other batch normalisation follow the batches. Off, all layers keep the statistics
            that they came with: then the head sees the same features in training as in evaluation, and any number of
            processes computes the same.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and not (update_statistics and module.weight.requires_grad):
            module.eval()


def backbone(model: ResNet) -> nn.Sequential:
    """Everything before the head, sharing its weights: float (B, 3, S, S) to features (B, F)."""
    return nn.Sequential(*list(model.children())[:-1], nn.Flatten())


def prior_logits(counts: Tensor, outputs: int) -> Tensor:
    """The logits of a model that predicts each class's share, whatever the image.

    Args:
        counts: training images per class, (C,).
        outputs: of the network: 1 for two classes, else C.

    Returns:
        float32 (outputs,).

    Raises:
        ValueError: a class without images.
    """
    if not (counts > 0).all():
        raise ValueError(f"training images per class: {counts.tolist()}; every class needs some")
    log_shares = (counts / counts.sum()).log()
    return log_shares[1:] - log_shares[0] if outputs == 1 else log_shares


@torch.no_grad()
def set_prior(model: ResNet, counts: Tensor) -> None:
    """Start the head's bias at the classes' log-odds, so that the first loss is the entropy of their shares.

    Arguments and errors as for `prior_logits`; the model is from `build_model`.
    """
    model.fc.bias.copy_(prior_logits(counts, model.fc.out_features))
