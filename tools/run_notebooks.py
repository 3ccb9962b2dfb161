"""Run the notebooks in order: `report` writes pages to reports/, `render` refreshes the outputs in notebooks/."""

from __future__ import annotations

import base64
import os
import platform
import re
import sys
import time
from pathlib import Path
from typing import Any

import jinja2
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html

from xray_helpers.files import project_root
from xray_helpers.settings import SOURCES, Settings, given_to_make

TEMPLATES = Path(__file__).parent / "templates"
PAGES = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True)


class NotebookError(Exception):
    """A notebook could not be run to its end; the message names it and the reason."""


def run(path: Path) -> Any:
    """Execute one notebook in a kernel of its own, in its folder; returns it with its outputs.

    Raises:
        NotebookError: a cell failed, or the kernel died.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=None, kernel_name="python3", coalesce_streams=True, record_timing=False,
        shutdown_kernel="immediate",  # asked to stop by itself, a kernel may complain about its own pending tasks
        extra_arguments=["--IPKernelApp.log_level=40"], resources={"metadata": {"path": str(path.parent)}},
    )  # fmt: skip
    try:
        client.execute()
    except CellExecutionError as error:
        raise NotebookError(f"{path.stem}: {error.ename}: {error.evalue}") from None
    except DeadKernelError:
        raise NotebookError(f"{path.stem}: the kernel died, most often since the memory was too small") from None
    tidy(notebook)
    return notebook


def tidy(notebook: Any) -> None:
    """Drop what progress bars leave behind, and what would differ between machines without meaning anything."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [
                output
                for output in cell.outputs
                if not (output.output_type == "stream" and output.name == "stderr" and not output.text.strip())
            ]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


def heading(notebook: Any) -> tuple[str, str]:
    """A notebook's title and its question: the first paragraph under the title."""
    lines = [line for line in notebook.cells[0].source.splitlines() if line.strip()]
    return lines[0].lstrip("# "), lines[1].replace("**", "")


def within_report(page: str) -> str:
    """A page whose links to notebooks and docs lead to the report's pages of them."""
    return re.sub(r'href="(?:\.\./\w+/)?([\w-]+)\.(?:ipynb|md)(#[^"]*)?"', r'href="\1.html\2"', page)


def write_docs(names: set[str], folder: Path) -> None:
    """Write a page for each of these files in `docs/`, without `.md`, and for those that they link."""
    docs, written = project_root() / "docs", set[str]()
    while names := names - written:
        name = min(names)
        body = markdown2html((docs / f"{name}.md").read_text(encoding="utf-8"))
        for picture in set(re.findall(r'src="([\w-]+\.png)"', body)):
            content = base64.b64encode((docs / picture).read_bytes()).decode()
            body = body.replace(f'src="{picture}"', f'src="data:image/png;base64,{content}"')
        names |= set(re.findall(r'href="([\w-]+)\.md[#"]', body))
        page = PAGES.get_template("doc.html.j2").render(name=name, body=within_report(body))
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
        written.add(name)


def report(paths: list[Path], settings: Settings, folder: Path) -> None:
    """Run every notebook and write a page for each, for the docs that they link, and `index.html`."""
    folder.mkdir(parents=True, exist_ok=True)
    pages, docs = [], set[str]()
    for index, path in enumerate(paths):
        previous, following = (paths[i].stem if 0 <= i < len(paths) else "" for i in (index - 1, index + 1))
        print(f"  {path.stem} ...", flush=True)
        start = time.perf_counter()
        notebook = run(path)
        seconds = time.perf_counter() - start
        exporter = HTMLExporter(template_name="report", extra_template_basedirs=[str(TEMPLATES)])
        title, question = heading(notebook)
        resources = {
            "previous": previous,
            "following": following,
            "data": settings.data_description,
            "metadata": {"name": title},
        }
        page, _ = exporter.from_notebook_node(notebook, resources=resources)
        docs |= set(re.findall(r'href="\.\./docs/([\w-]+)\.md[#"]', page))
        (folder / f"{path.stem}.html").write_text(within_report(page), encoding="utf-8")
        pages.append({"name": path.stem, "title": title, "question": question, "seconds": seconds})
        print(f"    {seconds:.0f} s", flush=True)
    write_docs(docs, folder)
    versions = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    text = PAGES.get_template("index.html.j2").render(
        pages=pages,
        data=settings.data_description,
        synthetic=settings.data == "sample",
        settings=settings,
        versions=versions,
    )
    (folder / "index.html").write_text(text, encoding="utf-8")


def render(paths: list[Path]) -> None:
    """Run every notebook and save it with its outputs."""
    for path in paths:
        print(f"  {path.stem} ...", flush=True)
        nbformat.write(run(path), path)


def main() -> None:
    """`run_notebooks.py report|render`, with the settings of the environment."""
    command = sys.argv[1] if len(sys.argv) == 2 else ""
    if command not in ("report", "render"):
        sys.exit("usage: run_notebooks.py report|render")
    if command == "render":  # what is committed shows the synthetic sample and the defaults, nothing else
        for name in [name for name in os.environ if name.startswith("XRAY_")]:
            del os.environ[name]
    os.environ |= given_to_make()
    os.environ.pop("XRAY_MAKE", None)
    try:
        settings = Settings.from_env()
    except ValueError as error:
        sys.exit(f"error: {error}")
    if settings.data not in SOURCES and settings.source().exists():
        os.environ["XRAY_DATA"] = str(settings.source().resolve())  # kernels run in another folder
    paths, reports = sorted((project_root() / "notebooks").glob("[0-9]*.ipynb")), settings.home / "reports"
    print(f"Running {len(paths)} notebooks on {settings.data_description}:", flush=True)
    start = time.perf_counter()
    try:
        if command == "report":
            report(paths, settings, reports)
        else:
            render(paths)
    except NotebookError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; what the finished notebooks made is kept")
    done = f"{reports.name}/index.html" if command == "report" else "notebooks/"
    print(f"Done in {time.perf_counter() - start:.0f} s: {done}")


if __name__ == "__main__":
    main()
