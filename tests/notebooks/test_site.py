"""The pages of the report, made from tiny notebooks that are written here and not run."""

import json
import re
import sys
import zipfile
from html.parser import HTMLParser

import build_site
import nbformat
import numpy as np
import pytest
import run_notebooks
from build_site import Page, numbers_for_names
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from xray_helpers.metrics import evaluate
from xray_helpers.settings import Settings

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
MACHINE = re.compile(r"/(home|Users|root|tmp|work|private|var|opt)/[\w.-]+")


def picture(alt, **more):
    return new_output(
        "display_data", {"image/png": PNG, "text/plain": "<Figure>"}, metadata={"image/png": {"alt": alt, **more}}
    )


def page(number, *outputs, text="Nothing.", **more):
    """A notebook of the series' form, with one code cell."""
    first = f"# {number} · Step {number}: what it does\n\n**What is asked in step {number}?**\n\n"
    first += "See the [glossary](../docs/glossary.md#term)."
    last = f"## What we learned\n\n- Lesson {number}. More.\n- Another.\n\nBack: [1](01_step.ipynb)."
    cells = [new_markdown_cell(first), new_markdown_cell(f"## Part\n\n{text}")]
    cells += [new_code_cell("secret_of_the_code = 1", outputs=list(outputs)), new_markdown_cell(last)]
    return Page(f"0{number}_step", new_notebook(cells=cells, metadata={"language_info": {"name": "python"}}), **more)


def judge(number):
    """A page with the figures and the table of the judgement."""
    roc, reliability, worst = (
        "ROC curve: ILL, n = 9. Data: none.",
        "Test: are the probabilities of ILL right? Data: none.",
        "ILL, called WELL, p = 0.1, most for it at 12% from the left. Data: none.",
    )
    table = '<table id="T_1"><tbody><tr><th>all thresholds</th><th>AUC</th><td>0.9</td></tr></tbody></table>'
    finding = new_output("display_data", {"text/markdown": "**Finding.** The AUC is 0.9 (n = 9)."})
    shown = (picture(roc, title="Every threshold"), picture(reliability), picture(worst), finding)
    return page(number, *shown, new_output("display_data", {"text/html": table}))


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project with one page of docs and no package."""
    root = tmp_path / "project"
    (root / "docs").mkdir(parents=True)
    (root / "docs" / "glossary.md").write_text("# Glossary\n\n## Term\n\nIn [step 1](../notebooks/01_step.ipynb).\n")
    monkeypatch.setattr(build_site, "project_root", lambda: root)
    return root


@pytest.fixture
def quick(monkeypatch):
    """No Sphinx: the sources stand for the pages."""

    def copy(source, target, *_):
        target.mkdir()
        for file in source.glob("*.*"):
            (target / f"{file.stem}.html").write_bytes(file.read_bytes())

    monkeypatch.setattr(build_site, "_sphinx", copy)


class Loaded(HTMLParser):
    """What a page loads, links, and shows."""

    def __init__(self, file):
        super().__init__()
        self.loaded, self.links, self.alts = [], [], []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag in ("script", "img", "iframe", "source"):
            self.loaded += filter(None, [values.get("src")])
        if tag == "link" and values["rel"] not in ("search", "index", "next", "prev", "author"):
            self.loaded.append(values["href"])
        if tag == "a":
            self.links.append(values.get("href", ""))
        if tag == "img":
            self.alts.append(values.get("alt", ""))


def test_the_pages_are_whole_numbered_linked_and_load_nothing_from_elsewhere(root, home, capfd):
    folder = home / "reports"
    folder.mkdir()
    (folder / "predictions.csv").write_text("kept")
    (folder / "09_old.html").write_text("gone")
    notes = build_site.build_site([page(1, text="Dollars: $1 and $2."), judge(2)], Settings(), folder)
    assert capfd.readouterr().err == ""
    names = {file.stem for file in folder.glob("*.html")}
    assert {"index", "01_step", "02_step", "glossary", "search"} <= names
    assert "09_old" not in names
    assert (folder / "predictions.csv").read_text() == "kept"
    for file in folder.glob("*.html"):
        found = Loaded(file)
        for address in found.loaded:
            assert (folder / address.partition("?")[0]).is_file(), f"{file.name} loads {address}"
        for address in (link.partition("#")[0] for link in found.links):
            assert not address or (folder / address).is_file(), f"{file.name} links to {address}"
        assert all(found.alts), file.name
        assert not MACHINE.search(file.read_text()), file.name
    assert str(root) not in (folder / "searchindex.js").read_text()

    text = (folder / "02_step.html").read_text()
    assert re.findall(r'<figure [^>]*id="(figure-[\d-]+)"', text) == ["figure-2-1", "figure-2-2", "figure-2-3"]
    assert 'href="#figure-2-1"' in text
    assert re.search(r"<strong>Figure 2.1.</strong> Every threshold<", text)
    assert re.search(r"<strong>Figure 2.2.</strong> Test: are the probabilities of ILL right\?<", text)
    assert 'alt="ROC curve: ILL, n = 9. Data: none."' in text
    assert re.search(r"<details class=\"[^\"]*above-input", text)
    assert not re.search(r"<details[^>]* open", text)
    assert "glossary.html#term" in text

    index = (folder / "index.html").read_text()
    for words in (
        "synthetic",
        "no medical device",
        "What is asked in step 2?",
        "Lesson 2. More.",
        "The AUC is 0.9 (n = 9)",
    ):
        assert words in index
    assert [link for link in Loaded(folder / "index.html").links if "#figure" in link][:3] == [
        f"02_step.html#figure-2-{n}" for n in (1, 2, 3)
    ]
    assert "all thresholds" in index
    assert notes == ["To send: reports/report.zip"]
    with zipfile.ZipFile(folder / "report.zip") as archive:
        assert {name.partition("/")[0] for name in archive.namelist()} == {"report"}
        assert {"report/index.html", "report/02_step.html", "report/searchindex.js"} <= set(archive.namelist())


def test_a_notebook_that_fails_is_shown_as_far_as_it_got_and_its_error_ends_the_report(root, home, monkeypatch, capfd):
    (root / "notebooks").mkdir()
    pages = {each.name: each for each in (page(1), page(2), page(3))}
    for name, each in pages.items():
        nbformat.write(each.notebook, root / "notebooks" / f"{name}.ipynb")

    def run(path):
        notebook = pages[path.stem].notebook
        if path.stem == "02_step":
            place = f"{home}/data/x.csv"
            error = new_output("error", ename="ValueError", evalue="no x", traceback=[f"File {place}"])
            notebook.cells[2].outputs = [error]
            raise run_notebooks.NotebookError(f"02_step: ValueError: {place} holds no <x>_*y*", notebook)
        return notebook

    monkeypatch.setattr(run_notebooks, "project_root", lambda: root)
    monkeypatch.setattr(run_notebooks, "run", run)
    monkeypatch.setattr(sys, "argv", ["run_notebooks.py", "report"])
    with pytest.raises(SystemExit) as stopped:
        run_notebooks.main()
    assert stopped.value.code == f"error: 02_step: ValueError: {home}/data/x.csv holds no <x>_*y*"
    assert capfd.readouterr().err == ""
    texts = {file.stem: file.read_text() for file in (home / "reports").glob("*.html")}
    assert "ValueError" not in texts["01_step"]
    for name in ("02_step", "index"):
        assert re.search(r"02_step: ValueError: [^/]*/data/x.csv holds no &lt;x&gt;_\*y\*", texts[name])
    assert "Lesson 2" in texts["02_step"]
    assert "Not run, since notebook 02_step stopped." in texts["03_step"]
    assert "Lesson 3" not in texts["03_step"]
    assert not [name for name, text in texts.items() if str(home) in text]


def test_the_headline_is_of_the_newest_run_where_the_notebooks_show_it(root, home, quick):
    random = np.random.default_rng(0)
    truth, patients = np.arange(40) % 2, np.arange(40) // 3
    judged = evaluate(truth, truth * 0.3 + random.random(40) * 0.7, patients, {"0.5": 0.5}, draws=50)
    run = home / "models" / "tiny-run-0123"
    run.mkdir(parents=True)
    (home / "models" / "latest.txt").write_text(run.name)
    found = {"protocol": "pooled split, patients apart", **judged}
    (run / "metrics.json").write_text(json.dumps({"val": found, "test": found, "finding": "ILL"}))
    (run / "trained-on.csv").write_text("pixels\n" + "x\n" * 99)
    for text, shown in ((f"Model card: {run.name}", True), ("Another run.", False)):
        build_site.build_site([page(1, text=text)], Settings(), home / "reports")
        index = (home / "reports" / "index.html").read_text()
        for words in ("test: 40 images, 14 patients", "patients apart", "learned from 99 images", "sensitivity"):
            assert (words in index) == shown, words


@pytest.fixture
def own(home):
    """Settings for images of one's own, whose catalog names two files of one patient."""
    (home / "scans").mkdir()
    settings = Settings(data=str(home / "scans"))
    settings.processed_folder.mkdir(parents=True)
    rows = "path,label,patient_fine,patient_coarse\n" + "".join(
        f"train/ILL/{name}.png,ILL,patient-Miller77,patient-Miller77\n" for name in ("miller_left", "12")
    )
    (settings.processed_folder / "catalog-1.csv").write_text(rows)
    return settings


def test_images_of_ones_own_are_only_sent_when_told_and_without_names(root, home, own, quick):
    said = "reads train/ILL/miller_left.png of patient-Miller77; 12 images, as 12.png"
    pages = [
        page(
            1,
            new_output("stream", name="stdout", text=said),
            picture("miller_left beside Miller77."),
            text="miller_left",
        )
    ]
    folder = home / "reports"
    (note,) = build_site.build_site(pages, own, folder)
    assert "SHARE=yes" in note
    assert not (folder / "report.zip").exists()
    assert "miller" in (folder / "01_step.html").read_text()

    assert build_site.build_site(pages, own, folder, share=True) == ["To send: reports/report.zip"]
    with zipfile.ZipFile(folder / "report.zip") as archive:
        texts = {
            name: archive.read(name).decode()
            for name in archive.namelist()
            if name.endswith(".html") and "figure-" not in name
        }
    assert not [name for name, text in texts.items() if "miller" in text.lower()]
    assert "reads file 2 of patient 1; 12 images, as file 1" in texts["report/01_step.html"]
    assert "Radiographs are in this report" in texts["report/index.html"]

    build_site.build_site(pages, own, folder)
    assert not (folder / "report.zip").exists()  # the one of before would be another report


def test_names_are_replaced_as_wholes(own, home):
    replace = numbers_for_names(home / "data" / "processed")
    assert replace("miller_lefty, 12, Miller77") == "miller_lefty, 12, patient 1"


def test_without_a_browser_there_is_a_line_instead_of_the_pdf(root, home, quick, monkeypatch):
    monkeypatch.setattr(build_site.shutil, "which", lambda name: None)
    notes = build_site.build_site([page(1)], Settings(), home / "reports", pdf=True)
    assert notes[-1] == "report.pdf is not made: none of chromium, chromium-browser, google-chrome is installed"
    assert not (home / "reports" / "report.pdf").exists()


def test_three_classes_and_a_missing_judgement_leave_the_index_whole(root, home, quick):
    build_site.build_site([page(1), page(2)], Settings(), home / "reports")
    text = (home / "reports" / "index.html").read_text()
    assert "no table of results" in text
    assert "figures of the judgement are missing" in text
    three = page(1, picture("ROC curve: virus, n = 9."), picture("ROC curve: bacteria, n = 9."))
    build_site.build_site([three], Settings(), home / "reports")
    assert "#figure-1-1" in (home / "reports" / "index.html").read_text()


def test_what_differs_between_runs_without_meaning_is_tidied_away():
    styled = '<style>#T_895f6_row0 {}</style><table id="T_895f6"></table>'
    output = nbformat.v4.new_output("display_data", data={"text/html": styled, "text/plain": "<Styler at 0x7f7>"})
    bar = nbformat.v4.new_output("stream", name="stderr", text="  \r")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=[output, bar])])
    run_notebooks.tidy(notebook)
    (left,) = notebook.cells[0].outputs
    assert left.data["text/plain"] == "<Styler>"
    assert left.data["text/html"] == '<style>#T_00000_row0 {}</style><table id="T_00000"></table>'
