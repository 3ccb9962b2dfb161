"""Start a notebook of one's own: a copy of templates/my_notebook.ipynb in my_notebooks/, which git ignores."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat

from xray_helpers.files import project_root

TEMPLATE = Path(__file__).parent / "templates" / "my_notebook.ipynb"


def new_notebook(name: str, folder: Path) -> Path:
    """Copy the template to `<folder>/<name>.ipynb`, with the name as its title.

    Raises:
        ValueError: the name holds more than letters, digits, spaces, `_`, `-` and `.`, or does not begin with one of
            the first two.
        FileExistsError: there is such a notebook already.
    """
    stem = name.removesuffix(".ipynb")
    if not re.fullmatch(r"\w[\w .-]*", stem):
        raise ValueError(f"{name!r} cannot be a notebook's name: use letters, digits, spaces, _, - and .")
    path = folder / f"{stem}.ipynb"
    if path.exists():
        raise FileExistsError(f"{folder.name}/{path.name} exists already, and was left as it is: choose another name")
    notebook = nbformat.read(TEMPLATE, as_version=4)
    notebook.cells[0].source = notebook.cells[0].source.replace("# Title", f"# {stem}")
    folder.mkdir(exist_ok=True)
    nbformat.write(notebook, path)
    return path


def main() -> None:
    """`new_notebook.py NAME`."""
    if len(sys.argv) != 2:
        sys.exit("usage: new_notebook.py NAME")
    try:
        path = new_notebook(sys.argv[1], project_root() / "my_notebooks")
    except (ValueError, FileExistsError) as error:
        sys.exit(f"error: {error}")
    place = f"my_notebooks/{path.name}"
    print(f"{place} is ready. To open it:\n  .venv/bin/jupyter lab '{place}'")


if __name__ == "__main__":
    main()
