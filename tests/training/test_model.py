import hashlib
import os
import pickle
import socket
import threading

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torchvision.models import resnet18

from xray_helpers.files import WeightsError
from xray_helpers.settings import ARCHS
from xray_helpers.training import model as module
from xray_helpers.training.engine import fit
from xray_helpers.training.model import (
    GROUPS,
    backbone,
    build_model,
    layer_groups,
    misfit,
    outputs_for,
    parameter_groups,
    set_prior,
    train_mode,
    weights_origin,
)

pytestmark = pytest.mark.real_network


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """An empty cache, and no name that can be looked up; gives the cache's folder."""

    def unknown(*_, **__):
        raise socket.gaierror("no such name")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.mark.parametrize("arch", ARCHS)
def test_every_resnet_gets_a_new_head(arch):
    with torch.device("meta"):
        model = build_model(arch, 3, "none")
    assert model.fc.out_features == 3
    assert model.arch == arch
    assert model.weights == "none"


def test_the_first_prediction_is_the_bias_alone():
    model = build_model("resnet18", 2, "none").eval()
    assert torch.equal(model(torch.rand(2, 3, 64, 64)), torch.zeros(2, 2))


@pytest.mark.parametrize("counts", [(115, 304), (10, 20, 70)])
def test_the_first_loss_is_the_entropy_of_the_classes(counts):
    shares = torch.tensor(counts) / sum(counts)
    entropy = float(-(shares * shares.log()).sum())
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    model = build_model("resnet18", 1 if len(counts) == 2 else len(counts), "none")
    set_prior(model, torch.tensor(counts))
    logits = model.fc(torch.rand(len(labels), 512))
    if len(counts) == 2:
        loss = binary_cross_entropy_with_logits(logits.squeeze(1), labels.float())
    else:
        loss = cross_entropy(logits, labels)
    assert loss.item() == pytest.approx(entropy, abs=1e-5)


def test_a_class_without_images_has_no_prior():
    with pytest.raises(ValueError, match="every class needs some"):
        set_prior(build_model("resnet18", 1, "none"), torch.tensor([0, 5]))


class TestWeights:
    @pytest.mark.parametrize("kind", ["pth", "safetensors"])
    def test_a_file_of_weights_is_loaded_whatever_its_head(self, tmp_path, kind):
        source = resnet18(num_classes=7)
        file = tmp_path / f"weights.{kind}"
        state = source.state_dict()
        torch.save(state, file) if kind == "pth" else save_file(state, file)
        model = build_model("resnet18", 1, str(file))
        assert torch.equal(model.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
        assert torch.equal(model.bn1.running_var, source.bn1.running_var)
        assert model.fc.out_features == 1
        assert model.weights == file.name  # and not its folder, which would name the machine

    def test_half_precision_weights_become_float32(self, tmp_path):
        source = resnet18()
        torch.save({name: value.half() for name, value in source.state_dict().items()}, tmp_path / "half.pth")
        model = build_model("resnet18", 1, str(tmp_path / "half.pth"))
        assert model.conv1.weight.dtype == torch.float32
        assert torch.allclose(model.conv1.weight, source.conv1.weight, atol=1e-3)

    @pytest.mark.parametrize(
        ("wrap", "said"),
        [
            (lambda state: {"state_dict": state, "epoch": 3}, "taken out of 'state_dict'"),
            (lambda state: {"model": state, "optimizer": {}}, "taken out of 'model'"),
            (lambda state: {f"module.{name}": value for name, value in state.items()}, "without the prefix 'module.'"),
            (
                lambda state: {"state_dict": {f"net.{name}": value for name, value in state.items()} | {"loss.w": 1}},
                "taken out of 'state_dict'; without the prefix 'net.' and 1 entries that lack it",
            ),
            (
                lambda state: {"model": {"state_dict": {f"_orig_mod.module.{n}": v for n, v in state.items()}}},
                "taken out of 'model'; taken out of 'state_dict'; without the prefix '_orig_mod.module.'",
            ),
        ],
    )
    def test_usual_wrappings_are_taken_off_and_said(self, tmp_path, capsys, wrap, said):
        """Field case 9."""
        source, file = resnet18(), tmp_path / "wrapped.pth"
        torch.save(wrap(source.state_dict()), file)
        model = build_model("resnet18", 1, str(file))
        assert torch.equal(model.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
        assert capsys.readouterr().out == f"note: wrapped.pth: {said}\n"

    def test_a_file_of_two_networks_is_refused(self, tmp_path):
        state = resnet18().state_dict()
        both = {f"{name}.{key}": value for name in ("student", "teacher") for key, value in state.items()}
        torch.save(both, tmp_path / "two.pth")
        with pytest.raises(
            WeightsError, match=r"two.pth holds 2 networks \(student., teacher.\): save one of them alone"
        ):
            build_model("resnet18", 1, str(tmp_path / "two.pth"))

    def test_weights_of_another_architecture_are_refused(self, tmp_path):
        torch.save(resnet18().state_dict(), tmp_path / "weights.pth")
        with pytest.raises(WeightsError, match=r"weights.pth does not fit this architecture: \d+ entries are missing"):
            build_model("resnet34", 1, str(tmp_path / "weights.pth"))

    def test_what_is_no_state_dict_is_refused(self, tmp_path):
        (tmp_path / "text.pth").write_text("no weights")
        torch.save([1, 2], tmp_path / "list.pth")
        for name, why in (("text.pth", "cannot be read as a state dict"), ("list.pth", "holds a list")):
            with pytest.raises(WeightsError, match=f"{name} {why}"):
                build_model("resnet18", 1, str(tmp_path / name))

    @pytest.mark.fault("file with code in it")
    def test_a_pickle_with_code_in_it_is_refused_and_never_runs(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return os.system, (f"touch {tmp_path / 'ran'}",)

        (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil()))
        with pytest.raises(WeightsError, match="cannot be read"):
            build_model("resnet18", 1, str(tmp_path / "evil.pth"))
        assert not (tmp_path / "ran").exists()

    @pytest.mark.fault("no network")
    def test_without_a_network_the_error_names_the_file_and_where_to_put_it(self, no_network):
        with pytest.raises(WeightsError, match=r"bring resnet18-f37072fd.pth from https://.* into the folder hub/chec"):
            build_model("resnet18", 1)

    def test_a_cut_file_in_the_cache_says_so(self, no_network):
        no_network.mkdir(parents=True)
        (no_network / "resnet18-f37072fd.pth").write_bytes(b"PK\3\4 cut")
        with pytest.raises(WeightsError, match="resnet18-f37072fd.pth, in the folder .* Delete it"):
            build_model("resnet18", 1)

    def test_the_real_weights_of_the_cache_are_used(self, shared_data, monkeypatch):
        monkeypatch.setenv("TORCH_HOME", str(shared_data.parent / "torch_home"))
        torch.manual_seed(0)
        first = build_model()
        torch.manual_seed(1)
        assert torch.equal(first.conv1.weight, build_model("resnet18", 1).conv1.weight)
        assert first.weights == "imagenet"
        assert first.fc.out_features == 1

    def test_a_file_that_is_not_the_published_one_is_told_by_its_checksum(self, no_network, monkeypatch, capsys):
        no_network.mkdir(parents=True)
        torch.save(resnet18().state_dict(), no_network / "resnet18-f37072fd.pth")
        digest = hashlib.sha256((no_network / "resnet18-f37072fd.pth").read_bytes()).hexdigest()
        model = build_model()
        reason = f"the SHA-256 of resnet18-f37072fd.pth should begin with f37072fd, and begins with {digest[:8]}"
        published = "torchvision's published ImageNet weights"
        assert capsys.readouterr().out == f"note: these are not {published}: {reason}\n"
        assert weights_origin(model) == f"ImageNet weights that are not the published ones ({reason})"
        assert model.weights_sha256 == digest

        # With the right digits in its name, it is the published one.
        name = f"resnet18-{digest[:8]}.pth"
        (no_network / "resnet18-f37072fd.pth").rename(no_network / name)
        monkeypatch.setattr(type(module.get_model_weights("resnet18").DEFAULT), "url", f"https://127.0.0.1/{name}")
        assert weights_origin(build_model()) == "torchvision's ImageNet weights"
        assert capsys.readouterr().out == ""

    def test_the_origin_of_other_weights_is_told_too(self, tmp_path):
        file = tmp_path / "own.pth"
        torch.save(resnet18().state_dict(), file)
        own, random = build_model("resnet18", 1, str(file)), build_model("resnet18", 1, "none")
        assert own.weights_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        assert random.weights_sha256 == ""
        random.run_name = "earlier"  # as load_model says
        origins = [weights_origin(each) for each in (own, build_model("resnet18", 1, "none"), random)]
        assert origins == ["the weights in own.pth", "random weights", "the weights of the run earlier"]

    def test_a_run_keeps_the_checksum_also_where_it_goes_on_without_the_weights(self, tmp_path):
        def stop(row, _model):
            if row["epoch"] == 1:
                raise KeyboardInterrupt

        labels = torch.tensor([0, 1, 0, 1])
        batches = [(labels.float().reshape(4, 1, 1, 1).expand(4, 1, 2, 2), labels)]
        network = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
        network.weights_sha256 = "abc"
        run = {
            "loaders": (batches, batches),
            "folder": tmp_path / "run",
            "epochs": 2,
            "name": "run",
            "learning_rate": 0.1,
            "precision": "float32",
        }
        with pytest.raises(KeyboardInterrupt):
            fit(network, **run, callbacks=[stop])
        again = fit(nn.Sequential(nn.Flatten(), nn.Linear(4, 1)), **run)
        assert again.history["epoch"].tolist() == [1, 2]
        assert again.model.info.epoch == 2
        assert again.model.info.weights_digest == "abc"

    def test_a_download_that_stops_is_an_error_and_no_hang(self, tmp_path, monkeypatch):
        """A server that answers, sends a little, and then nothing."""
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr(module, "DOWNLOAD_TIMEOUT", 1.0)

        def serve():
            connection, _address = server.accept()
            connection.recv(1000)
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(1000))
            kept.append(connection)

        kept = []
        with socket.create_server(("127.0.0.1", 0)) as server:
            threading.Thread(target=serve, daemon=True).start()
            url = f"http://127.0.0.1:{server.getsockname()[1]}/resnet18-f37072fd.pth"
            entry = module.get_model_weights("resnet18").DEFAULT
            monkeypatch.setattr(type(entry), "url", url)
            with pytest.raises(WeightsError, match="cannot be reached"):
                build_model("resnet18", 1)
        for connection in kept:
            connection.close()
        assert socket.getdefaulttimeout() is None
        assert not list(tmp_path.rglob("*.pth"))


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="arch='alexnet': expected one of resnet18"):
        build_model("alexnet", 1, "none")
    with pytest.raises(ValueError, match="num_outputs=0"):
        build_model("resnet18", 0, "none")


def test_two_classes_have_one_output_and_more_have_one_each():
    assert [outputs_for("ab"), outputs_for("abc"), outputs_for("abcd")] == [1, 3, 4]


def test_what_does_not_fit_is_counted_and_named():
    wanted = {"a": torch.zeros(2), "b": torch.zeros(3), "d": torch.zeros(1)}
    assert misfit(wanted, {name: value + 1 for name, value in wanted.items()}) == ""
    given = {"b": torch.zeros(3), "c": torch.zeros(1), "d": torch.zeros(2)}
    assert misfit(wanted, given) == "1 entries are missing, 1 unknown and 1 of another shape, such as a"
    assert misfit({"b": torch.zeros(3)}, given).endswith("2 unknown and 0 of another shape, such as c")


def test_every_parameter_is_in_one_group():
    model = build_model("resnet18", 1, "none")
    groups = layer_groups(model)
    assert tuple(groups) == GROUPS
    names = [id(p) for modules in groups.values() for p in modules.parameters()]
    assert sorted(names) == sorted(id(p) for p in model.parameters())


def test_deeper_layers_learn_faster():
    groups = parameter_groups(build_model("resnet18", 1, "none"), 1e-3, decay=0.5)
    assert [group["name"] for group in groups] == list(reversed(GROUPS))
    assert [group["lr"] for group in groups] == [1e-3 / 2**depth for depth in range(6)]


def test_frozen_layers_do_not_move_nor_do_their_statistics():
    torch.manual_seed(0)
    model = build_model("resnet18", 1, "none")
    for name in ("stem", "layer1", "layer2"):
        layer_groups(model)[name].requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1))
    for _ in range(2):
        train_mode(model)
        model(torch.rand(4, 3, 64, 64)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert not {name for name in moved if name.startswith(("conv1", "bn1", "layer1", "layer2"))}
    assert {"layer3.0.conv1.weight", "layer4.1.bn2.running_mean", "fc.bias"} <= moved


def test_statistics_can_stay_while_all_weights_learn():
    model = build_model("resnet18", 1, "none")
    train_mode(model, update_statistics=False)
    before = model.bn1.running_mean.clone()
    model(torch.rand(4, 3, 64, 64)).sum().backward()
    assert torch.equal(model.bn1.running_mean, before)
    assert model.bn1.weight.grad is not None


def test_the_backbone_gives_what_the_head_sees():
    model = build_model("resnet18", 3, "none").eval()
    torch.nn.init.normal_(model.fc.weight)
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(model.fc(backbone(model)(images)), model(images))
