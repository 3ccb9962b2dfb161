"""`make notebook NAME=mine`: a notebook that runs, beside those of the series and out of their way."""

import sys

import nbformat
import new_notebook
import pytest
import run_notebooks


def test_it_is_named_and_not_overwritten(tmp_path):
    path = new_notebook.new_notebook("my study", tmp_path / "my_notebooks")
    assert path == tmp_path / "my_notebooks" / "my study.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].source.startswith("# my study\n")
    assert not [cell for cell in notebook.cells if cell.get("outputs")]
    path.write_text("mine", encoding="utf-8")
    for name in ("my study", "my study.ipynb"):
        with pytest.raises(FileExistsError, match=r"my_notebooks/my study.ipynb exists already"):
            new_notebook.new_notebook(name, path.parent)
    assert path.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("name", ["", ".ipynb", "a/b", "a\\b", "../a", ".hidden", "-x", 'a"b', "a$b"])
def test_a_name_that_is_no_name_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="cannot be a notebook's name"):
        new_notebook.new_notebook(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_says_where_it_is_and_how_to_open_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(new_notebook, "project_root", lambda: tmp_path)
    monkeypatch.setattr(sys, "argv", ["new_notebook.py", "mine"])
    new_notebook.main()
    assert (tmp_path / "my_notebooks" / "mine.ipynb").is_file()
    assert "jupyter lab 'my_notebooks/mine.ipynb'" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="error: my_notebooks/mine.ipynb exists already"):
        new_notebook.main()


def test_report_and_render_take_only_the_numbered_notebooks(tmp_path, monkeypatch):
    taken = []
    (tmp_path / "notebooks").mkdir()
    for name in ("01_first", "Untitled"):
        nbformat.write(nbformat.v4.new_notebook(), tmp_path / "notebooks" / f"{name}.ipynb")
    new_notebook.new_notebook("09_mine", tmp_path / "my_notebooks")
    monkeypatch.setattr(run_notebooks, "project_root", lambda: tmp_path)
    monkeypatch.setattr(run_notebooks, "report", lambda paths, *_: taken.append(paths))
    monkeypatch.setattr(run_notebooks, "render", taken.append)
    for command in ("report", "render"):
        monkeypatch.setattr(sys, "argv", ["run_notebooks.py", command])
        run_notebooks.main()
    assert taken == [[tmp_path / "notebooks" / "01_first.ipynb"]] * 2


@pytest.mark.slow
def test_it_runs(tiny, tmp_path, monkeypatch):
    for name, value in {"DATA": tiny, "IMAGE_SIZE": 64, "WEIGHTS": "none"}.items():
        monkeypatch.setenv(f"XRAY_{name}", str(value))
    notebook = run_notebooks.run(new_notebook.new_notebook("mine", tmp_path))
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert "validation AUC" in "".join(output.get("text", "") for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
