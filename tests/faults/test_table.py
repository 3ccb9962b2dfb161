"""The table of faults in docs/faults.md names each fault that is tested, and where."""

import re

from xray_helpers.files import project_root

TESTS = project_root() / "tests"


def test_the_table_of_faults_is_that_of_the_tests():
    text = (project_root() / "docs" / "faults.md").read_text(encoding="utf-8")
    table = text.partition("| fault | what you see | tested in |\n")[2].partition("\n\n")[0].splitlines()[1:]
    documented = {}
    for row in table:
        fault, seen, where = (cell.strip() for cell in row.strip("|").split(" | "))
        assert seen
        documented[fault] = set(re.findall(r"`([\w/.]+)`", where))
    tested = {}
    for path in TESTS.rglob("test_*.py"):
        for fault in re.findall(r'mark\.fault\("([^"]+)"\)', path.read_text(encoding="utf-8")):
            tested.setdefault(fault, set()).add(path.relative_to(TESTS).as_posix())
    assert documented == tested
