"""The rules of the folders: which rooms may import which, and no circles."""

import ast
from graphlib import TopologicalSorter

import pytest

from xray_helpers.files import project_root

PACKAGE = project_root() / "xray_helpers"
ROOMS = ("metrics", "plots", "data", "training", "evaluation")
ALONE = ("metrics", "plots")  # these import nothing of ours
FORBIDDEN = {"data": ("training", "evaluation"), "training": ("evaluation",)}


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imports(name):
    """The modules of the package that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} imports from a relative name"
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [submodule if submodule in MODULES else node.module for submodule in submodules]
        else:
            continue
        yield from (module for module in found if module in MODULES)


def room(name):
    """`data` of `xray_helpers.data.splits`, `files` of `xray_helpers.files`, `""` of the package itself."""
    return name.partition(".")[2].partition(".")[0]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_imports_only_rooms_that_it_may(name):
    own, others = room(name), {room(module) for module in imports(name)} - {room(name)}
    assert not (own in ALONE and others), f"{name} imports {others}"
    assert not others.intersection(FORBIDDEN.get(own, ())), f"{name} imports {others}"
    if own not in (*ROOMS[2:], "predict"):
        assert not others.intersection(ROOMS), f"{name} serves all rooms, and imports {others}"


def test_no_module_imports_itself_by_way_of_others():
    graph = {name: set(imports(name)) - {name} for name in MODULES}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES) > 20
