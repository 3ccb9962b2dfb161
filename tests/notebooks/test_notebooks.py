"""The notebooks run on tiny data of several kinds, and what is committed is clean."""

import ast
import os
import re
import shutil
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from planted import USER, leaks
from planted import environment as planted_environment

from xray_helpers.files import project_root
from xray_helpers.settings import Settings

ROOT = project_root()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
SECRETS = re.compile(r"kgat_\w+|\"key\":\s*\"[0-9a-f]{32}\"|KAGGLE_(KEY|API_TOKEN)=\S+", re.IGNORECASE)
MACHINE = re.compile(r"/(home|Users|root|tmp|work|private|var|opt)/[\w.-]+")


def without_pictures(text):
    """Base64 holds any five letters sooner or later."""
    return re.sub(r"[A-Za-z0-9+/=]{200,}", "", text.replace("\\n", ""))


def without_blanks(source):
    return [line for line in source.splitlines() if line.strip()]


def solutions(notebook):
    """The code of the folded solutions, in their order."""
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return re.findall(r"<details>\n<summary>A solution</summary>\n\n```python\n(.*?)```.*?</details>", prose, re.DOTALL)


def text_of(output):
    if output.output_type == "stream":
        return output.text
    if output.output_type == "error":
        return "\n".join(output.traceback)
    return "\n".join(str(value) for kind, value in output.data.items() if kind.startswith("text/"))


GLOSSARY = "New terms are explained where they first appear, and listed in the [glossary](../docs/glossary.md)."
# No weights to be downloaded, and little to train.
QUICK = {"XRAY_WEIGHTS": "none", "XRAY_IMAGE_SIZE": "64", "XRAY_EPOCHS": "1"}


def report(*arguments, **environment):
    command = [sys.executable, str(ROOT / "tools" / "run_notebooks.py"), "report", *arguments]
    place = Path(os.environ["XRAY_HOME"]) / USER
    place.mkdir(exist_ok=True)
    planted = planted_environment(place)
    return subprocess.run(command, capture_output=True, text=True, env={**planted, **QUICK, **environment}, check=False)


class Page(HTMLParser):
    """Links, images and loaded addresses of a page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.images, self.loaded = [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "a":
            self.links.append(values.get("href", ""))
        if tag == "img":
            self.images.append(values)
        if tag in ("script", "link", "iframe", "img"):
            self.loaded += [values[name] for name in ("src", "href") if values.get(name)]


@pytest.fixture(scope="module")
def kinds(tiny, tmp_path_factory):
    """Tiny data of three kinds: Kaggle's shape, without a test folder, and another subject altogether."""
    folder = tmp_path_factory.mktemp("kinds of data, ünd so")
    shutil.copytree(tiny / "chest_xray", folder / "whole")
    shutil.copytree(tiny / "chest_xray", folder / "no test", ignore=shutil.ignore_patterns("test", "chest_xray"))
    for index, file in enumerate(sorted((tiny / "chest_xray" / "train").glob("*/*.jpeg"))[:60]):
        target = folder / "animals" / "train" / ("cat", "dog", "cow")[index % 3] / f"{index}.jpeg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    return folder


@pytest.mark.fault("secrets, user name, machine paths: a search")
@pytest.mark.parametrize(
    ("kind", "split", "task"),
    [
        ("no test", "blocked", "pneumonia"),  # two classes, as most have them: with thresholds and calibration
        pytest.param("whole", "official", "cause", marks=pytest.mark.slow),
        pytest.param("animals", "pooled", "folders", marks=pytest.mark.slow),
    ],
)
def test_the_report_runs_on_data_of_any_kind(kinds, home, kind, split, task):
    run = report(XRAY_DATA=str(kinds / kind), XRAY_SPLIT=split, XRAY_TASK=task)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    pages = sorted(path.name for path in (home / "reports").glob("*.html"))
    own = {f"{path.stem}.html" for path in NOTEBOOKS} | {"index.html"}
    docs = {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")}
    assert own | docs | {"search.html", "api.html", "api_data.html"} <= set(pages)
    name = Settings(data=str(kinds / kind)).data_name
    assert list((home / "data" / "processed" / name).glob(f"splits-{split}-*.csv"))
    for path in (home / "reports").glob("*.html"):
        page, text = Page(path), without_pictures(path.read_text(encoding="utf-8"))
        assert "Warning" not in text or path.name not in own
        for loaded in {*page.loaded} - {"#"}:  # the search page's link to itself
            assert (home / "reports" / loaded.partition("?")[0]).is_file(), f"{path.name} loads {loaded}"
        assert all(image.get("alt", "").strip() for image in page.images), f"an image of {path.name} has no alt text"
        assert not MACHINE.search(text), MACHINE.search(text)
        assert name in text or path.name not in own
        for link in page.links:
            local = link.split("#")[0]
            assert local.startswith("https://") or not local or (home / "reports" / local).is_file(), link
    assert Page(home / "reports" / "06_evaluate.html").images
    assert "95% intervals by bootstrap" in (home / "reports" / "index.html").read_text(encoding="utf-8")
    assert not (home / "reports" / "report.zip").exists()
    for folder in ("data", "models", "reports"):
        assert leaks(home / folder, home / USER, run.stdout) == set()


@pytest.mark.slow
def test_a_failing_notebook_ends_the_report_with_one_clear_message(kinds, home):
    run = report(XRAY_DATA=str(kinds / "no test"), XRAY_SPLIT="official")
    assert run.returncode == 1
    assert len(run.stderr.splitlines()) == 1
    assert "02_resplit" in run.stderr
    assert "chest_xray/test/<class>/ is missing" in run.stderr
    for page in ("02_resplit", "index"):
        text = (home / "reports" / f"{page}.html").read_text(encoding="utf-8")
        assert "chest_xray/test/&lt;class&gt;/ is missing" in text


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [("XRAY_SPLIT", "random", "pooled, official, blocked"), ("XRAY_DAAT", "kaggle", "names no setting")],
)
def test_a_wrong_setting_stops_the_report_before_it_runs(variable, value, message):
    run = report(**{variable: value})
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert message in run.stderr
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestCommitted:
    """What is in the repository."""

    def test_it_was_run_in_order_on_the_sample_without_errors_or_warnings(self, path):
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
        outputs = [output for cell in code for output in cell.outputs]
        assert outputs
        assert not [output for output in outputs if output.output_type == "error"]
        assert not [text_of(output) for output in outputs if output.get("name") == "stderr"]
        assert any("synthetic sample, no patients" in text_of(output).lower() for output in outputs)

    def test_it_names_no_machine_and_holds_no_secret(self, path):
        text = without_pictures(path.read_text(encoding="utf-8"))
        assert not MACHINE.search(text), MACHINE.search(text)
        assert not SECRETS.search(text)
        assert path.stat().st_size < 1_500_000

    def test_every_picture_has_alt_text(self, path):
        notebook = nbformat.read(path, as_version=4)
        outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
        pictures = [output for output in outputs if "image/png" in output.get("data", {})]
        assert pictures
        for output in pictures:
            assert len(output.metadata["image/png"]["alt"]) > 40

    def test_it_has_the_form_of_the_series(self, path):
        notebook = nbformat.read(path, as_version=4)
        first, last = notebook.cells[0].source, notebook.cells[-1].source
        assert first.startswith("# ")
        for part in ("?**", "**You will see**", "**Time**"):
            assert part in first
        assert first.endswith(GLOSSARY)
        assert last.startswith("## What we learned")
        code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
        assert re.search(
            r'^start = time\.perf_counter\(\)\n(\w+\.)?use_house_style\(\)\nprint\(f"PyTorch', code[0], re.M
        )
        assert code[-1] == 'print(f"This notebook took {time.perf_counter() - start:.0f} s.")'
        assert notebook.cells[-2].source == code[-1]
        assert [cell.source.startswith("settings = Settings.from_env(") for cell in notebook.cells].count(True) == 1
        for source in code:  # the helpers say nothing that need be hidden
            assert not re.search(r"redirect_std|devnull|StringIO|%%capture|sys\.std(out|err) *=", source)
        tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
        assert len(tagged) == 1
        for link in re.findall(r"\]\(([\w./-]+\.(?:ipynb|md))\)", "".join(cell.source for cell in notebook.cells)):
            assert (path.parent / link).is_file(), link

    def test_its_imports_are_few_and_stand_in_its_first_code_cell(self, path):
        notebook, python = nbformat.read(path, as_version=4), TransformerManager().transform_cell
        code = [ast.parse(python(cell.source)) for cell in notebook.cells if cell.cell_type == "code"]
        found = [[node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)] for tree in code]
        assert sum(node.end_lineno - node.lineno + 1 for node in found[0]) <= 12
        assert not any(found[1:])

    def test_its_sections_and_cells_are_short_and_led_by_prose(self, path):
        notebook = nbformat.read(path, as_version=4)
        prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        explained = re.sub(r"```python\n.*?```", "", prose, flags=re.DOTALL)
        sections = re.findall(r"^## (.*)", explained, re.MULTILINE)
        assert len(sections) <= 8
        assert sections[-2:] == ["Exercises", "What we learned"]
        lines = sorted(len(without_blanks(cell.source)) for cell in notebook.cells if cell.cell_type == "code")
        assert statistics.median(lines) <= 6
        assert lines[int(0.9 * (len(lines) - 1))] <= 20
        assert lines[-1] <= 30
        pairs = list(zip(notebook.cells, notebook.cells[1:], strict=False))
        led = [before.cell_type == "markdown" for before, cell in pairs if cell.cell_type == "code"]
        assert sum(led) >= 0.8 * len(led)
        words = re.findall(r"\w+", re.sub(r"\]\(.*?\)|<.*?>", " ", explained))
        written = sum(lines) + sum(len(without_blanks(solution)) for solution in solutions(notebook))
        assert 4 <= len(words) / written <= 10

    def test_its_exercises_have_solutions_and_it_says_how_long_it_took(self, path):
        notebook = nbformat.read(path, as_version=4)
        prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        assert prose.count("<details>") == prose.count("**1.**") + prose.count("**2.**") + prose.count("**3.**")
        assert 2 <= len(solutions(notebook)) == prose.count("<details>") <= 3
        assert "**1.** (easy)" in prose
        assert re.fullmatch(r"This notebook took \d+ s\.\n", text_of(notebook.cells[-2].outputs[0]))


def test_the_glossary_is_in_order_and_says_where_each_term_first_appears():
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| (.+) \| \[(\d)\]\(\.\./notebooks/(0\d\w+\.ipynb)\) \|$", text, re.MULTILINE)
    terms = [re.sub(r"\W", "", term).lower() for term, *_ in rows]
    assert len(rows) == text.count("\n| ") - 2 > 50  # of all lines but the table's own two
    assert terms == sorted(set(terms))
    for term, meaning, number, file in rows:
        assert file.startswith(f"0{number}_"), term
        assert (ROOT / "notebooks" / file).is_file(), term
        assert meaning.endswith("."), term


def test_what_is_committed_was_trained_from_pretrained_weights():
    """The heart of the series, with its head stage and its comparison; see TORCH_HOME in `make render`."""
    notebook = nbformat.read(ROOT / "notebooks" / "05_finetune.ipynb", as_version=4)
    text = "\n".join(text_of(output) for cell in notebook.cells for output in cell.get("outputs", []))
    assert re.search(r"Training starts from .*ImageNet weights", text)
    assert "-resnet18-imagenet-" in text
    assert re.search(r"^head +0/", text, re.MULTILINE)
    assert re.search(r"started from: imagenet, SHA-256 [0-9a-f]{64}", text)
    assert "random weights instead" not in text
    assert "nothing to compare" not in text


def test_no_text_file_of_the_repository_names_a_machine_or_holds_a_secret():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, files):
        if name.endswith(".png"):
            continue
        text = without_pictures((ROOT / name).read_text(encoding="utf-8"))
        if Path(name).parts[0] != "tests":
            assert not MACHINE.search(text), name
            assert not SECRETS.search(text), name
