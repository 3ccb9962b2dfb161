"""The order of the house: floors without circles, small files, and plots that know no other module."""

import ast

import pytest

from xray_helpers.files import project_root

FLOORS = {
    "files": 0, "device": 0, "drawing": 0, "decoding": 0, "jpeg": 0,
    "settings": 1, "phantoms": 1, "archives": 1,
    "download": 2, "catalog": 2,
    "splits": 3, "transforms": 3, "store": 3,
    "dataset": 4, "model": 4, "inference": 4,
    "bootstrap": 4, "calibration": 4.5,
    "facts": 4.5, "metrics": 5, "checkpoint": 5, "steps": 5,
    "comparison": 6, "shortcuts": 6, "record": 6,
    "explain": 6.5, "training": 6.5, "predict": 6.5, "card": 6.5, "evaluation": 7,
    "plots": 7,
}  # fmt: skip
PACKAGE = project_root() / "xray_helpers"
MODULES = {path: path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}


def imported(path):
    """The modules of the package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "xray_helpers":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("xray_helpers."):
            yield node.module.split(".")[1]


@pytest.mark.parametrize("path", [path for path in MODULES if path.parent == PACKAGE], ids=lambda path: path.stem)
def test_a_module_imports_only_floors_below_it(path):
    if path.stem != "__init__":
        assert path.stem in FLOORS, "give the new module its floor"
        for name in imported(path):
            assert FLOORS[name] < FLOORS[path.stem], f"{path.stem} imports {name}"


def test_plots_import_no_other_module():
    for path, module in MODULES.items():
        if module == "plots":
            assert set(imported(path)) <= {"plots"}


def test_no_file_is_longer_than_250_lines():
    for path in MODULES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 250, path.name
