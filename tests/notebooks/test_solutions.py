"""The folded solutions of the exercises run; a file of its own, so that it can run beside the reports."""

import nbformat
import pytest
from run_notebooks import run
from test_notebooks import NOTEBOOKS, QUICK, solutions, text_of


@pytest.mark.slow
def test_the_solutions_of_all_exercises_run_after_their_notebooks(tiny, monkeypatch, tmp_path):
    for name, value in {**QUICK, "XRAY_DATA": str(tiny)}.items():
        monkeypatch.setenv(name, value)
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        own = len(notebook.cells)
        notebook.cells += [nbformat.v4.new_code_cell(solution) for solution in solutions(notebook)]
        nbformat.write(notebook, tmp_path / path.name)
        cells = run(tmp_path / path.name).cells  # names the notebook and the error where one fails
        for cell in cells[own:]:
            assert cell.outputs, f"{path.stem}: a solution shows nothing: {cell.source}"
            assert not [text_of(output) for output in cell.outputs if output.get("name") == "stderr"]
