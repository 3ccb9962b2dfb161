import os
import subprocess
import sys
from pathlib import Path

import pytest

COUNT = 1000 if os.environ.get("FAULTS") == "long" else 200


@pytest.mark.parametrize(("kind", "outcomes"), [("images", ("an image", "damaged")), ("archives", ("Corrupt",))])
def test_mutated_files_end_in_a_listed_error_or_are_valid_and_never_crash_or_hang(kind, outcomes):
    command = [sys.executable, str(Path(__file__).with_name("fuzz.py")), kind, str(COUNT)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr
    for outcome in outcomes:
        assert outcome in found.stdout
