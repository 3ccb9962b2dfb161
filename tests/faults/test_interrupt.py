"""Ctrl-C, on the command line and in a notebook."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import interrupted
import pytest
from common import assert_same, small
from jupyter_client.manager import start_new_kernel

from xray_helpers.training.__main__ import main
from xray_helpers.training.checkpoint import resume
from xray_helpers.training.train import train

EPOCHS = 3
KEPT = "stopped; models/{} keeps the finished epochs, and the next run goes on from there"
OPTIONS = f"--image-size 32 --batch-size 16 --epochs {EPOCHS} --weights none --device cpu"
CELL = """
import interrupted
from networks import use_tiny_networks
from xray_helpers.settings import Settings
from xray_helpers.training.train import train
use_tiny_networks()
interrupted.interrupt("between two epochs")
settings = Settings(data={data!r}, image_size=32, batch_size=16, epochs={epochs}, weights="none", device="cpu")
run = train(settings)
"""


@pytest.fixture
def ctrl_c():
    """Press Ctrl-C at an instant of one's choice."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process that runs tests may ignore it
    with contextlib.ExitStack() as stack:
        yield lambda instant: stack.callback(interrupted.interrupt(instant))
    signal.signal(signal.SIGINT, before)


@pytest.mark.fault("Ctrl-C on the command line")
@pytest.mark.parametrize("instant", interrupted.INSTANTS)
def test_wherever_it_comes_it_says_what_is_kept_and_goes_on_from_there(
    tiny, tmp_path, monkeypatch, capsys, ctrl_c, instant
):
    settings = small(tiny, epochs=EPOCHS)
    monkeypatch.setattr(sys, "argv", ["training", "--data", str(tiny), *OPTIONS.split()])
    ctrl_c(instant)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130
    assert capsys.readouterr().out.endswith(KEPT.format(settings.run_name) + "\n")
    state = resume(settings.run_folder)
    assert (state["epoch"] if state else 0) == (0 if instant == "in the first batch" else 1)
    main()
    folder = settings.run_folder
    monkeypatch.setenv("XRAY_HOME", str(tmp_path))
    assert_same(folder, train(settings).folder)


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A run that nobody stopped, in a process as those that are stopped."""
    home = tmp_path_factory.mktemp("whole")
    run_command(tiny, home, "never")
    (folder,) = (home / "models").glob("[!.]*-*")
    return folder


def surroundings(home):
    places = [str(Path(__file__).parent), str(Path(__file__).parent.parent), *sys.path]
    return {**os.environ, "XRAY_HOME": str(home), "PYTHONPATH": os.pathsep.join(places)}


def run_command(data, home, instant):
    script = str(Path(__file__).with_name("interrupted.py"))
    command = [sys.executable, script, instant, "--data", str(data), *OPTIONS.split()]
    return subprocess.run(command, env=surroundings(home), capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.fault("Ctrl-C on the command line")
def test_the_command_line_ends_without_a_traceback(tiny, home, whole):
    for instant in ("between two epochs", "never"):
        run = run_command(tiny, home, instant)
        if instant != "never":
            assert KEPT.format(whole.name) in run.stdout
            assert run.returncode == 130
            assert "Traceback" not in run.stderr
            assert resume(home / "models" / whole.name)["epoch"] == 1
        else:
            assert run.returncode == 0, run.stderr
    assert_same(home / "models" / whole.name, whole)


@pytest.mark.slow
@pytest.mark.fault("stop button in a notebook")
def test_a_notebook_s_cell_says_what_is_kept_and_goes_on_when_it_is_run_again(tiny, home, whole):
    manager, client = start_new_kernel(env=surroundings(home))
    said, errors = [], []

    def listen(message):
        kind, content = message["header"]["msg_type"], message["content"]
        if kind == "stream" and content["name"] == "stdout":
            said.append(content["text"])
        elif kind == "error":
            errors.append(content["ename"])

    try:
        client.execute_interactive(CELL.format(data=str(tiny), epochs=EPOCHS), output_hook=listen, timeout=300)
        assert errors == ["KeyboardInterrupt"]
        assert KEPT.format(whole.name) in "".join(said)
        assert resume(home / "models" / whole.name)["epoch"] == 1
        client.execute_interactive("run = train(settings)", output_hook=listen, timeout=300)
        assert errors == ["KeyboardInterrupt"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert_same(home / "models" / whole.name, whole)
