import subprocess
import sys
from pathlib import Path

import pytest
from conftest import LONG

COUNT = 1000 if LONG else 200


@pytest.mark.parametrize(
    ("kind", "outcomes"),
    [
        pytest.param("images", ("an image", "damaged"), marks=pytest.mark.fault("mutated JPEG files")),
        pytest.param("archives", ("Corrupt",), marks=pytest.mark.fault("mutated zip files")),
    ],
)
def test_mutated_files_end_in_a_listed_error_or_are_valid_and_never_crash_or_hang(kind, outcomes, record_property):
    command = [sys.executable, str(Path(__file__).with_name("fuzz.py")), kind, str(COUNT)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr
    for outcome in outcomes:
        assert outcome in found.stdout
    record_property("cases", COUNT)
