"""How Sphinx makes the report; `tools/build_site.py` writes what it reads, and runs it."""

import json
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

project = html_title = "Pneumonia or normal: the report"
author, language = "", "en"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
templates_path = ["templates"]
suppress_warnings = ["myst.header"]  # the model card in notebook 06 begins with a heading of the third level

nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show = nb_code_prompt_hide = "Code"
nb_render_markdown_format = "myst"  # tables
myst_heading_anchors = 3
myst_enable_extensions: list[str] = []  # no mathematics: dollars are dollars

add_module_names = False
napoleon_use_ivar = True
default_role = "code"  # docstrings mark names as Markdown does
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"

html_theme = "sphinx_book_theme"
html_theme_options = {
    "navbar_persistent": [],  # the search is in the sidebar, and a button in the page's header
    "home_page_in_toc": True,
    "show_toc_level": 2,
    "toc_title": "On this page",
    "use_download_button": False,
    "use_fullscreen_button": False,
    "article_header_end": ["code-switch.html", "article-header-buttons.html"],
    "extra_footer": "Teaching and research software, not a medical device.",
}
html_sidebars = {"**": ["search-button-field.html", "sbt-sidebar-nav.html"]}
html_context = {"default_mode": "auto"}
html_static_path = ["static"]
html_css_files = ["report.css"]
html_js_files = ["report.js"]
html_favicon = "static/icon.svg"
html_copy_source = html_show_sphinx = html_show_copyright = html_use_index = html_domain_indices = False
html_show_search_summary = False  # a page opened as a file may not fetch the others


class Figures(SphinxTransform):
    """Give the pictures of a notebook their alt texts, numbers, captions and anchors, which `figures.json` holds."""

    default_priority = 210

    def apply(self, **_: Any) -> None:
        """Wrap each picture into a figure."""
        captions = json.loads((Path(self.env.srcdir) / "figures.json").read_text(encoding="utf-8"))
        bundles = [each for each in self.document.findall(nodes.container) if each.get("mime_type") == "image/png"]
        for bundle, (name, alt, text) in zip(bundles, captions.get(self.env.docname, []), strict=True):
            number = name.removeprefix("figure-").replace("-", ".")
            caption = nodes.caption("", "", nodes.strong("", f"Figure {number}."), nodes.Text(f" {text}"))
            figure = nodes.figure("", *bundle.children, caption, ids=[name], names=[name])
            figure.children[0]["alt"] = alt
            bundle.children = []
            bundle.append(figure)
            self.document.note_explicit_target(figure)


def setup(app: Sphinx) -> None:
    """Add what is our own."""
    app.add_transform(Figures)
