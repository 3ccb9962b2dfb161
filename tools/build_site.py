"""The report as a site: sources for Sphinx from notebooks, `docs/` and docstrings, the pages, a zip to send, a PDF."""

from __future__ import annotations

import base64
import json
import platform
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from html import escape
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jinja2
import nbformat
import pandas as pd

from xray_helpers.data.catalog import read_rows
from xray_helpers.evaluation.report import METRICS, PACKAGES, results_table
from xray_helpers.files import CheckpointError, make_folder, project_root
from xray_helpers.settings import SOURCES, Settings
from xray_helpers.training.checkpoint import TRAINED_ON, latest_run

SITE = Path(__file__).parent / "site"  # Sphinx's configuration, the index's template, the style
FRONT = ("^ROC curve", "are the probabilities .* right", r"called\b.* most for it")  # by alt text, for the index
HEADLINE = re.compile(r"^(?!<details).*>(all thresholds|mean over the classes)</th>", re.DOTALL)  # of results
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# A headless browser that opens one file and asks the network for nothing; as root it starts without its sandbox only.
HEADLESS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--no-pdf-header-footer",
)  # fmt: skip


class SiteError(Exception):
    """The pages or the PDF could not be made; the message says why."""


class Figure(NamedTuple):
    """A picture in a notebook: its anchor (`figure-6-3`), what it shows in words, a caption, and the PNG in base64."""

    name: str
    alt: str
    caption: str
    png: str


@dataclass
class Page:
    """A notebook that becomes a page.

    Attributes:
        name: of its file, without the suffix.
        notebook: with outputs.
        seconds: that it ran, None where it was not run just now.
        error: why it stopped, or was not run; `""` for none.
    """

    name: str
    notebook: Any
    seconds: float | None = None
    error: str = ""

    @property
    def heading(self) -> tuple[str, str]:
        """Its title and its question: the first paragraph under the title."""
        lines = [line for line in self.notebook.cells[0].source.splitlines() if line.strip()]
        return lines[0].lstrip("# "), "".join(lines[1:2]).replace("**", "")

    @property
    def learned(self) -> str:
        """The first thing that its last section says was learned."""
        found = re.search(r"^[-*] (.+)", self.notebook.cells[-1].source, re.MULTILINE)
        return found[1] if found else ""

    @property
    def finding(self) -> str:
        """The last finding in its outputs, with its numbers."""
        texts = (str(output.get("data", {}).get("text/markdown", "")) for output in self.outputs())
        return ([text.removeprefix("**Finding.** ") for text in texts if text.startswith("**Finding.**")] or [""])[-1]

    @property
    def figures(self) -> list[Figure]:
        """Its pictures in their order, numbered after the notebook."""
        pictures = [output for output in self.outputs() if "image/png" in output.get("data", {})]
        return [self._figure(number, output) for number, output in enumerate(pictures, 1)]

    def outputs(self) -> Iterator[Any]:
        """All outputs of its cells."""
        return (output for cell in self.notebook.cells for output in cell.get("outputs", []))

    def _figure(self, number: int, output: Any) -> Figure:
        about, first = output.metadata.get("image/png", {}), re.match(r"0*(\d+)", self.name)
        alt = about.get("alt", "A figure without a description")
        caption = about.get("title") or textwrap.shorten(alt.partition(" Data: ")[0], 160, placeholder=" …")
        return Figure(f"figure-{first[1] if first else 0}-{number}", alt, caption, output.data["image/png"])


def build_site(
    pages: Sequence[Page], settings: Settings, folder: Path, share: bool = False, pdf: bool = False
) -> list[str]:
    """Write the site of these notebooks, of `docs/` and of the package's docstrings, in the place of an earlier one.

    Args:
        pages: the notebooks, in their order.
        settings: that they were run with.
        folder: for the pages, `report.zip` and `report.pdf`; other files in it stay.
        share: replace the names of files and patients by numbers, so that images of one's own may be sent.
        pdf: print everything but the pages of docstrings, where a Chromium is installed.

    Returns:
        Lines for the user, on what else was written and what was not.

    Raises:
        SiteError: Sphinx or the browser failed.
    """
    private, notes = settings.data not in SOURCES, []
    if private and share:
        replace = numbers_for_names(settings.home / "data" / "processed")
        pages = [Page(page.name, _mapped(page.notebook, replace), page.seconds, replace(page.error)) for page in pages]
    make_folder(folder)
    with TemporaryDirectory(dir=folder, prefix="building-") as place:  # a packaged Chromium may not see /tmp
        source, built = Path(place) / "source", Path(place) / "report"
        _write_sources(pages, settings, source, private and share)
        synthetic = "synthetic" if settings.data == "sample" else ""
        banner = f'<span class="{synthetic}">Data: {settings.data_description}. Not a medical device.</span>'
        _sphinx(source, built, "html", "-D", f"html_theme_options.announcement={banner}")
        for file in built.rglob("*.map"):  # for whoever changes the theme's scripts
            file.unlink()
        for old in (*folder.glob("*.html"), *(folder / name for name in ("report.zip", "report.pdf"))):
            old.unlink(missing_ok=True)
        for name in ("_static", "_images"):
            shutil.rmtree(folder / name, ignore_errors=True)
        shutil.copytree(built, folder, dirs_exist_ok=True)
        if share or not private:
            shutil.make_archive(str(folder / "report"), "zip", place, built.name)
            notes.append(f"To send: {folder.name}/report.zip")
        else:
            notes.append(f"{folder.name}/report.zip is not made, since it would hold your radiographs: see SHARE=yes")
        if pdf:
            notes.append(_write_pdf(source, folder / "report.pdf"))
    return notes


def numbers_for_names(processed: Path) -> Callable[[str], str]:
    """A function that replaces the names of files and patients in a text by numbers.

    Args:
        processed: the folder of the catalogs and splits, whose columns hold the names.
    """
    tables = [read_rows(file) for file in sorted(processed.glob("*/*.csv"))]
    paths, patients = (
        sorted({value for table in tables for name in names for value in table.get(name, ())})
        for names in (("path",), ("patient_fine", "patient_coarse"))
    )
    words: dict[str, str] = {}
    for number, path in enumerate(map(Path, paths), 1):
        words |= dict.fromkeys((path.as_posix(), path.name, path.stem), f"file {number}")
    for number, key in enumerate((key for key in patients if not key.startswith("file-")), 1):  # those are paths
        words |= dict.fromkeys((key, key.partition("-")[2]), f"patient {number}")
    # A number of few digits may be anything; as part of a whole name it is replaced all the same.
    words = {word: number for word, number in words.items() if not re.fullmatch(r"\d{0,4}", word)}
    words |= {escape(word): number for word, number in words.items()}

    def replace(text: str) -> str:
        found = sorted((word for word in words if word in text), key=len, reverse=True)
        pattern = "|".join(map(re.escape, found))
        return re.sub(rf"(?<!\w)(?:{pattern})(?!\w)", lambda match: words[match[0]], text) if found else text

    return replace


def _mapped(value: Any, change: Callable[[str], str], key: str = "") -> Any:
    """Nested values with each text changed, but for pictures."""
    if isinstance(value, str):
        return value if key.startswith("image/") else change(value)
    if isinstance(value, dict):
        return nbformat.from_dict({name: _mapped(each, change, name) for name, each in value.items()})
    return [_mapped(each, change) for each in value] if isinstance(value, list) else value


def _write_sources(pages: Sequence[Page], settings: Settings, folder: Path, shared: bool) -> None:
    """Write what Sphinx reads, all in one folder, as the pages lie later."""
    folder.mkdir()
    for page in pages:
        nbformat.write(_source(page), folder / f"{page.name}.ipynb")
    for file in (project_root() / "docs").iterdir():
        if file.suffix == ".md":
            (folder / file.name).write_text(_within_report(file.read_text(encoding="utf-8")), encoding="utf-8")
        elif file.is_file():
            shutil.copy(file, folder)
    captions = {page.name: [figure[:3] for figure in page.figures] for page in pages}
    (folder / "figures.json").write_text(json.dumps(captions), encoding="utf-8")

    drawn = [figure for page in pages for figure in page.figures]
    front = [next((figure for figure in drawn if re.search(pattern, figure.alt)), None) for pattern in FRONT]
    for figure in (*filter(None, front), *(page.figures[-1] for page in pages if page.figures)):
        (folder / f"{figure.name}.png").write_bytes(base64.b64decode(figure.png))
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(SITE), trim_blocks=True)  # noqa: S701 - Markdown
    templates.filters["plain"] = _plain
    index = templates.get_template("index.md.j2").render(
        pages=pages,
        front=[figure for figure in front if figure],
        judged=_judged(pages, settings),
        settings=settings,
        shared=shared,
        versions={"Python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        docs=sorted(file.stem for file in (project_root() / "docs").glob("*.md")),
        rooms=_write_rooms(folder),
    )
    (folder / "index.md").write_text(_within_report(index), encoding="utf-8")


def _source(page: Page) -> Any:
    """A notebook as Sphinx reads it: code folded, links within the report, an error in words."""
    notebook = deepcopy(page.notebook)
    for cell in notebook.cells:
        cell.source = _within_report(cell.source) if cell.cell_type == "markdown" else cell.source
        if cell.cell_type == "code":
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), "hide-input"]
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                output.traceback = [page.error]
            elif table := output.get("data", {}).get("text/html"):  # pandas' styled tables like its plain ones
                table = re.sub(r" \((\S+) to (\S+)\)", "\u00a0(\\1\u00a0to\u00a0\\2)", table)  # intervals in one line
                output.data["text/html"] = table.replace('<table id="T_', '<table class="dataframe" id="T_')
    if page.error:
        words = nbformat.v4.new_markdown_cell(f"```{{error}}\n{_plain(page.error)}\n```")
        notebook.cells.insert(1, words)
    return notebook


def _within_report(text: str) -> str:
    """Markdown whose links to notebooks and docs lead to their pages."""
    return re.sub(r"\]\(\.\./(?:docs|notebooks)/", "](", text)


def _plain(text: str) -> str:
    """Markdown that shows a text as it is, in one paragraph."""
    return re.sub(r"([!-/:-@[-`{-~])", r"\\\1", " ".join(text.split()))


def _judged(pages: Sequence[Page], settings: Settings) -> dict[str, Any]:
    """The results of the newest run where these notebooks show it, else the table in them, else nothing."""
    try:
        run = latest_run(settings.home / "models")
    except CheckpointError:
        run = settings.home
    if (run / METRICS).is_file() and any(run.name in str(page.notebook) for page in pages):
        found = json.loads((run / METRICS).read_text(encoding="utf-8"))
        if found["test"]:
            splits = {name: found[split] for name, split in (("validation", "val"), ("test", "test")) if found[split]}
            learned = len(pd.read_csv(run / TRAINED_ON)) if (run / TRAINED_ON).is_file() else 0
            return {"table": results_table(splits).to_html(border=0), "learned": learned, **found}
    outputs = [output for page in pages for output in page.outputs()]
    tables = (output.get("data", {}).get("text/html", "") for output in outputs)
    protocol = re.search(r"^\w+ split, .+", "\n".join(output.get("text", "") for output in outputs), re.MULTILINE)
    table = next((table for table in tables if HEADLINE.search(table)), "")
    return {"table": table, "protocol": protocol[0] if protocol else "as notebook 6 tells"}


def _write_rooms(folder: Path) -> list[str]:
    """A page for each room of the package, from its docstrings; returns their names."""
    package, names = project_root() / "xray_helpers", []
    for room in sorted(file.parent for file in package.rglob("__init__.py")):
        module = ".".join(room.relative_to(package.parent).parts)
        text = ""
        for part in (module, *(f"{module}.{file.stem}" for file in sorted(room.glob("[!_]*.py")))):
            title, line = part.removeprefix("xray_helpers."), "-" if text else "="
            text += f"{title}\n{line * len(title)}\n\n.. automodule:: {part}\n{'   :members:' if text else ''}\n\n"
        names.append("_".join(("api", *room.relative_to(package).parts)))
        (folder / f"{names[-1]}.rst").write_text(text, encoding="utf-8")
    return names


def _sphinx(source: Path, target: Path, builder: str, *options: str) -> None:
    """Run Sphinx; what it warns of goes to stderr.

    Raises:
        SiteError: it failed.
    """
    places = ("-c", SITE, "-d", source.parent / "doctrees", source, target)
    command = [sys.executable, "-m", "sphinx", "-q", "-j", "auto", "-b", builder, *options, *map(str, places)]
    if subprocess.run(command, check=False).returncode:  # noqa: S603 - our own command
        raise SiteError("Sphinx could not make the pages; its own message is above")


def _write_pdf(source: Path, target: Path) -> str:
    """Print all pages but those of docstrings as one; returns a line for the user.

    Raises:
        SiteError: the browser failed.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not browser:
        return f"report.pdf is not made: none of {', '.join(BROWSERS)} is installed"
    paper = source.parent / "paper"
    _sphinx(source, paper, "singlehtml")
    profile = f"--user-data-dir={source.parent / 'browser'}"
    command = [browser, *HEADLESS, profile, f"--print-to-pdf={target}", (paper / "index.html").as_uri()]
    try:
        subprocess.run(command, capture_output=True, check=True, timeout=300)  # noqa: S603 - our own command
    except (subprocess.SubprocessError, OSError) as error:
        raise SiteError(f"the pages are there, but {Path(browser).name} could not print them: {error}") from None
    return f"On paper: {target.parent.name}/{target.name}"
