"""What the README shows runs as it is printed."""

import re

from conftest import TinyResNet

from xray_helpers.files import project_root
from xray_helpers.training import model as model_module
from xray_helpers.training.checkpoint import load_model


def test_the_four_lines_of_using_the_helpers_run_as_printed(tmp_path, monkeypatch):
    section = (project_root() / "README.md").read_text(encoding="utf-8").partition("## Using the helpers")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    statements = [line for line in code.splitlines() if line and not line.startswith(("from ", "import "))]
    assert [line.split(" = ")[0] for line in statements] == ["data", "loaders", "model", "run"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_module, "imagenet_weights", lambda arch: TinyResNet().state_dict())
    names = {}
    exec(code, names)
    run = names["run"]
    assert run.history["stage"].tolist() == ["head"] + ["fine-tune"] * 3
    assert run.history["val_auc"].notna().all()
    assert load_model("models/mine").info == run.model.info
    assert run.model.info.classes == ("NORMAL", "PNEUMONIA")
