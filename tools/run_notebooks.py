"""Run the notebooks in order: `report` makes pages in reports/, `render` refreshes the outputs in notebooks/.

`docs` makes the pages from the outputs in notebooks/, and runs nothing.
"""

from __future__ import annotations

import os
import re
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import nbformat
from build_site import Page, SiteError, build_site
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from xray_helpers.files import project_root
from xray_helpers.settings import SOURCES, Settings, given_to_make


class NotebookError(Exception):
    """A notebook could not be run to its end; the message names it and the reason, `notebook` has what it got to."""

    def __init__(self, message: str, notebook: Any) -> None:
        super().__init__(message)
        self.notebook = notebook


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
        raise NotebookError(f"{path.stem}: {error.ename}: {error.evalue}", notebook) from None
    except DeadKernelError:
        reason = "the kernel died, most often since the memory was too small"
        raise NotebookError(f"{path.stem}: {reason}", notebook) from None
    finally:
        tidy(notebook)
    return notebook


def tidy(notebook: Any) -> None:
    """Drop what progress bars leave behind, and what would differ between runs or machines without meaning anything."""
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            cell.outputs = [
                output
                for output in cell.outputs
                if not (output.output_type == "stream" and output.name == "stderr" and not output.text.strip())
            ]
            # Pandas names a styled table at random, and a plain text may have an object's address.
            drawn = {"text/html": (r"\bT_[0-9a-f]{5}", f"T_{number:05}"), "text/plain": (r" at 0x[0-9a-f]+", "")}
            for data in (output.get("data", {}) for output in cell.outputs):
                for kind in drawn.keys() & data.keys():
                    data[kind] = re.sub(*drawn[kind], data[kind])
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


def report(paths: list[Path], settings: Settings, folder: Path, share: bool = False, pdf: bool = False) -> None:
    """Run every notebook, and make the pages; where one fails, it is shown as far as it got, and the rest is not run.

    Args:
        paths: of the notebooks.
        settings: that they run with.
        folder: for the pages.
        share: as for `build_site`.
        pdf: as for `build_site`.

    Raises:
        NotebookError: one failed; the pages are there all the same.
        SiteError: the pages could not be made.
    """
    pages, failed, reason = list[Page](), None, None
    for path in paths:
        if failed:
            notebook = nbformat.read(path, as_version=4)
            del notebook.cells[1:]  # its outputs are of another run
            pages.append(Page(path.stem, notebook, error=f"Not run, since notebook {failed.name} stopped."))
            continue
        print(f"  {path.stem} ...", flush=True)
        start = time.perf_counter()
        try:
            page = Page(path.stem, run(path))
        except NotebookError as error:
            reason = error
            page = failed = Page(path.stem, error.notebook, error=without_places(str(error), settings))
        page.seconds = time.perf_counter() - start
        pages.append(page)
        print(f"    {page.seconds:.0f} s", flush=True)
    publish(pages, settings, folder, share, pdf)
    if reason:
        raise reason


def without_places(text: str, settings: Settings) -> str:
    """A message without the paths of this machine: pages are sent on."""
    for place in (settings.source(), settings.home, project_root(), Path.home()):
        text = text.replace(str(place), place.name) if place.name else text
    return text


def publish(pages: list[Page], settings: Settings, folder: Path, share: bool, pdf: bool) -> None:
    """Make the pages, and say how long it took and what else there is."""
    start = time.perf_counter()
    notes = build_site(pages, settings, folder, share, pdf)
    print(f"  pages ... {time.perf_counter() - start:.0f} s", *notes, sep="\n", flush=True)


def render(paths: list[Path]) -> None:
    """Run every notebook and save it with its outputs."""
    for path in paths:
        print(f"  {path.stem} ...", flush=True)
        nbformat.write(run(path), path)


def main() -> None:
    """`run_notebooks.py report|render|docs`, with the settings of the environment."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("command", choices=("report", "render", "docs"))
    parser.add_argument("--share", action="store_true", help="report.zip with images of your own, names replaced")
    parser.add_argument("--pdf", action="store_true", help="report.pdf, where Chromium is installed")
    given = parser.parse_args()
    if given.command != "report":  # what is committed shows the synthetic sample and the defaults, nothing else
        kept = ("XRAY_HOME",) if given.command == "docs" else ()
        for name in [name for name in os.environ if name.startswith("XRAY_") and name not in kept]:
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
    if given.command != "docs":
        print(f"Running {len(paths)} notebooks on {settings.data_description}:", flush=True)
    start = time.perf_counter()
    try:
        if given.command == "report":
            report(paths, settings, reports, given.share, given.pdf)
        elif given.command == "docs":
            pages = [Page(path.stem, nbformat.read(path, as_version=4)) for path in paths]
            publish(pages, settings, reports, given.share, given.pdf)
        else:
            render(paths)
    except (NotebookError, SiteError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; what the finished notebooks made is kept")
    done = "notebooks/" if given.command == "render" else f"{reports.name}/index.html"
    print(f"Done in {time.perf_counter() - start:.0f} s: {done}")


if __name__ == "__main__":
    main()
