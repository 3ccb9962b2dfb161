"""Ctrl-C, on the command line and in a notebook."""

import os
import signal
import subprocess
import sys

import pytest
from common import assert_same, small
from jupyter_client.manager import start_new_kernel

from xray_helpers.checkpoint import resume
from xray_helpers.training import fit

EPOCHS = 6
CELL = """
from xray_helpers.settings import Settings
from xray_helpers.training import fit
settings = Settings(data={data!r}, image_size=32, batch_size=16, epochs={epochs}, weights="none", device="cpu")
run = fit(settings)
"""


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A run that nobody stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XRAY_HOME", str(tmp_path_factory.mktemp("whole")))
        return fit(small(tiny, epochs=EPOCHS)).folder


@pytest.mark.fault("Ctrl-C on the command line")
def test_the_command_line_says_what_is_kept_and_goes_on_from_there(tiny, home, whole):
    options = f"--image-size 32 --batch-size 16 --epochs {EPOCHS} --weights none --device cpu"
    command = [sys.executable, "-u", "-m", "xray_helpers.training", "--data", str(tiny), *options.split()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "fine-tune 1/" not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    folder = home / "models" / whole.name
    assert f"stopped; models/{whole.name} keeps the finished epochs, and the next run goes on from there" in output
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert 1 <= resume(folder)["epoch"] < EPOCHS
    subprocess.run(command, check=True, capture_output=True)
    assert_same(folder, whole)


@pytest.mark.fault("stop button in a notebook")
def test_a_notebook_s_cell_says_what_is_kept_and_goes_on_when_it_is_run_again(tiny, home, whole):
    manager, client = start_new_kernel(env=dict(os.environ))
    said, errors = [], []

    def listen(message):
        kind, content = message["header"]["msg_type"], message["content"]
        if kind == "stream" and content["name"] == "stdout":
            if "fine-tune 1/" in content["text"]:
                manager.interrupt_kernel()
            said.append(content["text"])
        elif kind == "error":
            errors.append(content["ename"])

    try:
        cell = CELL.format(data=str(tiny), epochs=EPOCHS)
        client.execute_interactive(cell, output_hook=listen, timeout=120)
        assert errors == ["KeyboardInterrupt"]
        assert "keeps the finished epochs, and the next run goes on from there" in "".join(said)
        assert 1 <= resume(home / "models" / whole.name)["epoch"] < EPOCHS
        client.execute_interactive("run = fit(settings)", output_hook=lambda _: None, timeout=120)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert_same(home / "models" / whole.name, whole)
