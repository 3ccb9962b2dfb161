"""The real Kaggle client, in a process of its own, against a server on this machine."""

import io
import json
import os
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import nbformat
import pytest
from kaggle_server import KaggleServer
from nbclient import NotebookClient

TOKEN = "kgat_0123456789"
COMMAND = [sys.executable, "-m", "xray_helpers.data.download", "--data", "kaggle"]

# Importing takes seconds, so one process does it once, and forks for each run; there, nothing waits.
RUNNER = """
import json, os, sys, time
import kagglesdk.kaggle_client, requests
from xray_helpers.data import download
for line in sys.stdin:
    variables, setup, paths = json.loads(line)
    if not (child := os.fork()):
        os.environ.clear()
        os.environ.update(variables)
        for stream, path in enumerate(paths, start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        time.sleep, os.sync = lambda seconds: None, lambda: None
        exec(setup)
        sys.argv = ["download", "--data", "kaggle"]
        download.main()
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def archive(tiny):
    """The tiny dataset as Kaggle packs it: everything twice, with a Mac's leftovers."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted((tiny / "chest_xray").rglob("*")):
            packed.write(path, path.relative_to(tiny))
        packed.writestr("chest_xray/__MACOSX/._train", b"Mac")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def runner():
    """A process that has imported everything but Kaggle's client, which signs in when it is imported."""
    command = [sys.executable, "-c", RUNNER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def fetch_with(runner, tmp_path, home):
    """Run what `python -m xray_helpers.data.download --data kaggle` runs against a server."""

    def run(server, setup="", **environment):
        variables = server.environment(tmp_path, XRAY_HOME=str(home), **environment)
        paths = tmp_path / "stdout", tmp_path / "stderr"
        print(json.dumps([variables, setup, [str(path) for path in paths]]), file=runner.stdin, flush=True)
        code = int(runner.stdout.readline())
        return SimpleNamespace(returncode=code, stdout=paths[0].read_text(), stderr=paths[1].read_text())

    return run


def images(home):
    return sorted(path.name for path in (home / "data/raw/kaggle/chest_xray").glob("*/*/*"))


def expected(tiny):
    return sorted(path.name for path in (tiny / "chest_xray").glob("[tv]*/*/*"))


def hidden(home):
    return sorted(path.name for path in (home / "data/raw").glob(".*") if path.suffix != ".lock")


def test_the_command_downloads_without_credentials_and_only_once(archive, fetch_with, home, tiny, tmp_path):
    with KaggleServer(archive) as server:
        variables = server.environment(tmp_path, XRAY_HOME=str(home))
        first = subprocess.run(COMMAND, capture_output=True, text=True, env=variables, timeout=120, check=False)
        assert first.returncode == 0, first.stderr
        assert images(home) == expected(tiny)
        assert f"data/raw/kaggle: {len(expected(tiny))} images" in first.stdout
        assert "100%" in first.stderr  # progress
        assert hidden(home) == []
        before = len(server.requests)
        again = fetch_with(server)
        assert "complete" in again.stdout
        assert len(server.requests) == before


def test_a_token_is_used_and_never_shown_or_stored(archive, fetch_with, home, tiny):
    with KaggleServer(archive, token=TOKEN) as server:
        run = fetch_with(server, KAGGLE_API_TOKEN=TOKEN)
    assert run.returncode == 0, run.stderr
    assert images(home) == expected(tiny)
    assert TOKEN not in run.stdout + run.stderr
    for path in home.rglob("*.json"):
        assert TOKEN not in path.read_text()


def test_a_token_in_the_home_folder_is_used(archive, fetch_with, home, tiny, tmp_path):
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle" / "access_token").write_text(TOKEN)
    with KaggleServer(archive, token=TOKEN) as server:
        assert fetch_with(server).returncode == 0
    assert images(home) == expected(tiny)


@pytest.mark.fault("download that is cut or damaged")
def test_a_cut_connection_is_resumed_where_it_stopped(archive, fetch_with, home, tiny):
    with KaggleServer(archive, cuts=1) as server:
        run = fetch_with(server)
    assert run.returncode == 0, run.stderr
    first, second = server.ranges
    start = int(second.removeprefix("bytes=").rstrip("-"))
    assert first is None
    assert 0 < start <= len(archive) // 2  # the client drops the last chunk that was not whole
    assert server.served == len(archive) // 2 + len(archive) - start
    assert images(home) == expected(tiny)


@pytest.mark.fault("download that is cut or damaged")
def test_a_connection_that_stays_cut_keeps_its_part_for_the_next_run(archive, fetch_with, home, tiny):
    with KaggleServer(archive, cuts=99) as server:
        run = fetch_with(server)
        assert run.returncode == 1
        assert "connection was cut" in run.stderr
        assert "run this again to continue from there" in run.stderr
        assert not (home / "data/raw/kaggle").exists()
        kept = (home / "data/raw/.kaggle-download/chest-xray-pneumonia.zip").stat().st_size
        assert 0 < kept < len(archive)
        assert server.downloads == 1  # the client has retried enough
        server.cuts, server.ranges[:] = 0, []
        run = fetch_with(server)
        assert run.returncode == 0, run.stderr
        assert server.ranges[-1] == f"bytes={kept}-"
    assert images(home) == expected(tiny)


def damage(archive):
    """The same length, one byte of an image wrong: the client, which only checks the size, accepts it."""
    data = bytearray(archive)
    with zipfile.ZipFile(io.BytesIO(archive)) as packed:
        info = next(info for info in packed.infolist() if info.filename.startswith("chest_xray/train/NORMAL/"))
    data[info.header_offset + 30 + len(info.filename) + info.compress_size // 2] ^= 255
    return bytes(data)


@pytest.mark.fault("download that is cut or damaged")
def test_a_corrupt_archive_is_found_and_downloaded_again(archive, fetch_with, home, tiny):
    with KaggleServer(damage(archive), archive) as server:
        run = fetch_with(server)
    assert run.returncode == 0, run.stderr
    assert "damaged" in run.stdout
    assert "Downloading it again" in run.stdout
    assert server.downloads == 2
    assert images(home) == expected(tiny)
    assert hidden(home) == []


def test_an_archive_that_stays_corrupt_is_never_kept(archive, fetch_with, home):
    with KaggleServer(damage(archive)) as server:
        run = fetch_with(server)
    assert run.returncode == 1
    assert server.downloads == 2
    assert "error: chest-xray-pneumonia.zip is not a zip archive, or it is damaged" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (home / "data/raw/kaggle").exists()
    assert hidden(home) == []


@pytest.mark.fault("Kaggle refuses")
@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "Kaggle asks for credentials (HTTP 401). Create a token"),
        (403, "Kaggle asks for credentials (HTTP 403). Create a token"),
        (404, "Kaggle has no dataset paultimothymooney/chest-xray-pneumonia (HTTP 404)"),
    ],
)
def test_a_refusal_says_what_to_do(archive, fetch_with, home, status, message):
    with KaggleServer(archive, status=status) as server:
        run = fetch_with(server)
    assert run.returncode == 1
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    assert len([request for request in server.requests if "Download" in request]) == 1  # asking again would not help
    assert not (home / "data/raw/kaggle").exists()


def test_wrong_credentials_are_told_from_missing_ones(archive, fetch_with):
    with KaggleServer(archive, status=403) as server:
        run = fetch_with(server, KAGGLE_USERNAME="reader", KAGGLE_KEY="0123456789abcdef")
    assert "Kaggle refused your credentials (HTTP 403). Renew them, or remove them" in run.stderr
    assert "0123456789abcdef" not in run.stdout + run.stderr


@pytest.mark.fault("Kaggle refuses")
def test_a_token_that_kaggle_does_not_know_is_called_refused(archive, fetch_with):
    """Field case 4."""
    with KaggleServer(archive, token="kgat_another") as server:
        run = fetch_with(server, KAGGLE_API_TOKEN=TOKEN)
    assert "Kaggle refused your credentials (HTTP 401). Renew them, or remove them" in run.stderr
    assert TOKEN not in run.stdout + run.stderr


@pytest.mark.fault("credentials that cannot be read")
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("kaggle.json", '{"username": "reader", "key": "0123456789abcdef"}'.encode("utf-16")),
        ("kaggle.json", '{"username": "reader", "key": "0123456789abcdef"}'.encode("utf-16-le")),
        ("kaggle.json", '{"username": "reader", "key": "0123456789abcdef"}'.encode("utf-8-sig")),
        ("kaggle.json", b'{"username": "reader", "key": '),
        ("kaggle.json", b'["0123456789abcdef"]'),
        ("kaggle.json", b"7"),
        ("access_token", TOKEN.encode("utf-16")),
        ("access_token.txt", TOKEN.encode("utf-8-sig")),
    ],
)
def test_credentials_in_another_encoding_are_named_before_any_request(archive, fetch_with, tmp_path, name, content):
    """Field case 4: PowerShell saves UTF-16."""
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle" / name).write_bytes(content)
    with KaggleServer(archive) as server:
        run = fetch_with(server)
    assert run.stderr.startswith(f"error: .kaggle/{name} does not hold what Kaggle gives, as plain text in UTF-8.")
    assert server.requests == []
    assert "0123456789abcdef" not in run.stderr


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_stays_busy_is_asked_three_times(archive, fetch_with, status):
    with KaggleServer(archive, status=status) as server:
        run = fetch_with(server)
    assert f"Kaggle answered HTTP {status}. Try again later" in run.stderr
    assert len([request for request in server.requests if "Download" in request]) == 3


def test_a_busy_server_is_asked_again(archive, fetch_with, home, tiny):
    with KaggleServer(archive, fail_first=1) as server:
        run = fetch_with(server)
    assert run.returncode == 0, run.stderr
    assert images(home) == expected(tiny)


@pytest.mark.fault("no network")
@pytest.mark.parametrize("credentials", [{}, {"KAGGLE_API_TOKEN": TOKEN}])
def test_no_network_is_said_and_leads_to_the_sample(archive, fetch_with, credentials):
    with KaggleServer(archive) as server:
        pass  # closed: nobody listens on its port any more
    run = fetch_with(server, **credentials)
    assert run.returncode == 1
    assert "Kaggle could not be reached" in run.stderr
    assert "use data='sample'" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.fault("disk too small for what comes")
def test_a_disk_too_small_is_found_before_a_byte_is_downloaded(archive, fetch_with, home):
    full = (
        "import shutil, collections\n"
        "shutil.disk_usage = lambda path: collections.namedtuple('U', 'total used free')(0, 0, 200_100_000)\n"
    )
    with KaggleServer(archive) as server:
        run = fetch_with(server, setup=full)
    assert run.returncode == 1
    assert "Downloading and extracting Kaggle's archive needs" in run.stderr
    assert not list((home / "data/raw").rglob("*.zip"))


def test_it_works_inside_a_notebook_too(archive, tmp_path, home, tiny, monkeypatch):
    """In a kernel the client's exit() does not exist, and what it prints would name the machine's folders."""
    notebook = nbformat.v4.new_notebook()
    code = "from xray_helpers.data.download import fetch\nfrom xray_helpers.settings import Settings\n"
    notebook.cells = [nbformat.v4.new_code_cell(code + "fetch(Settings(data='kaggle')).name")]
    with KaggleServer(archive) as server:
        variables = server.environment(tmp_path, XRAY_HOME=str(home))
        for name in set(os.environ) - set(variables):
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        NotebookClient(notebook, timeout=60, extra_arguments=["--IPKernelApp.log_level=40"]).execute()
    text = str(notebook.cells[0].outputs)
    assert images(home) == expected(tiny)
    assert "'chest_xray'" in text
    assert str(home) not in text
    assert "kaggle.com/settings" not in text
