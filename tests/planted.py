"""Secrets that are planted in the environment, and the search for them in what is written."""

import os
import sys
from pathlib import Path

from xray_helpers.files import project_root

USER, TOKEN, KEY = "planted-user", "KGAT_planted0123456789", "0123456789abcdef" * 2


def environment(place):
    """The environment of a user of this name, whose home is `place`, with Kaggle's credentials."""
    kaggle = {"KAGGLE_API_TOKEN": TOKEN, "KAGGLE_USERNAME": USER, "KAGGLE_KEY": KEY}
    return {**os.environ, **dict.fromkeys(("USER", "LOGNAME", "USERNAME"), USER), "HOME": str(place), **kaggle}


def leaks(folder, place, log=""):
    """Which files below a folder, or the log, hold a secret, the user's name or a path of this machine."""
    paths = {str(place), os.environ["XRAY_HOME"], str(project_root()), str(Path(sys.prefix)), str(Path.home())} - {"/"}
    secrets = {USER, TOKEN, KEY, *paths}
    found = {name for name in secrets if name in log}
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        found |= {f"{path.name}: {secret}" for secret in secrets if secret.encode() in content}
    return found
