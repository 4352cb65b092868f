"""The report as files: one self-contained page, Markdown, figures, and tables for programs and papers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from nml.errors import UserError
from nml.files import write_bytes
from nml.text_table import in_columns
from probes.reporting.drawing import FileKind, panel_svg, save_figure
from probes.reporting.inline_svg import inline
from probes.reporting.papers import all_tables, csv_text, has_numbers, latex_text
from probes.reporting.records import Figure, Gap, Report, Table
from probes.reporting.theme import css_variables

PAGE = "report.html"
TEXT = "report.md"
FIGURES = "figures"
TABLES = "tables"
LATEX = "latex"
SUFFIXES = (".png", ".svg", ".pdf", ".csv", ".tex")


def check_output(folder: Path) -> None:
    """Refuse a folder that holds something else than an earlier report.

    Raises:
        UserError: If ``folder`` is a file, or has content but no report.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder}: is a file", possible="a new folder, or one with an earlier report")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / PAGE).is_file():
        raise UserError(
            f"--out {folder}: holds files but no {PAGE}",
            possible="a new folder, or one with an earlier report",
        )


def write_report(
    report: Report, folder: Path, figures: Iterable[Figure] | None = None, *, latex: bool = False
) -> Path:
    """Write the report to ``folder``, which becomes exactly this report, and return its page.

    Equal reports give equal bytes. The page is written last: where it is, all else is.

    Args:
        report: What to write.
        folder: Where to; an earlier report there is replaced.
        figures: The report's figures, if the caller wants to see them pass (for progress).
        latex: Whether to write tables for LaTeX and figures as PDF, too.
    """
    kinds: tuple[FileKind, ...] = ("png", "svg", "pdf") if latex else ("png", "svg")
    for figure in figures or report.figures:
        save_figure(figure, folder / FIGURES, kinds)
    _clear(folder / FIGURES, {f"{figure.name}.{kind}" for figure in report.figures for kind in kinds})
    tables = all_tables(report)
    for table in tables:
        write_bytes(folder / TABLES / f"{table.name}.csv", csv_text(table).encode())
    _clear(folder / TABLES, {f"{table.name}.csv" for table in tables})
    for_papers = [table for table in report.tables if latex and has_numbers(table)]
    for table in for_papers:
        write_bytes(folder / LATEX / f"{table.name}.tex", latex_text(table).encode())
    _clear(folder / LATEX, {f"{table.name}.tex" for table in for_papers})
    for name, text in report.documents:
        write_bytes(folder / name, text.encode())
    write_bytes(folder / TEXT, render("report.md.j2", report).encode())
    page = folder / PAGE
    write_bytes(page, render("report.html.j2", report).encode())
    return page


def _clear(folder: Path, names: set[str]) -> None:
    """Remove what an earlier report left in its folder."""
    for file in folder.glob("*.*"):
        if file.suffix in SUFFIXES and file.name not in names:
            file.unlink()


def render(template: str, report: Report) -> str:
    """Return ``report`` through a template of this package.

    HTML is escaped by default, in Markdown what would be read as markup is; figures alone enter as
    they are, made by this package.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("probes.reporting"),
        autoescape=jinja2.select_autoescape(("html.j2",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = markdown
    environment.globals.update(css_variables=css_variables, pictures=pictures, kind=kind)
    return environment.get_template(template).render(report=report)


def pictures(figure: Figure) -> list[Markup]:
    """Return the panels of a figure as inline SVG elements."""
    return [
        Markup(  # noqa: S704 - built by an XML writer, which escapes every text
            inline(
                panel_svg(figure, panel),
                name=f"{figure.name}-{number}",
                title=panel.title,
                description=panel.alt,
            )
        )
        for number, panel in enumerate(figure.panels, 1)
    ]


def kind(item: Figure | Table | Gap) -> str:
    """Return the name of the macro that renders an item."""
    return type(item).__name__.lower()


def markdown(value: Any) -> str:
    """Return text that Markdown shows as it is, also inside a table."""
    text = " ".join(str(value).split())
    for character in "\\`*_{}[]|#":
        text = text.replace(character, "\\" + character)
    # HTML is part of Markdown: only an entity keeps a name such as <b> from becoming markup.
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def table_text(table: Table) -> str:
    """Return title, header and rows in columns: text to the left, numbers to the right."""
    lines = [table.header, *([cell.text for cell in row] for row in table.rows)]
    header, *rows = in_columns(lines, text_columns=table.text_columns)
    rule = "  ".join("-" * max(map(len, column)) for column in zip(*lines, strict=True))
    return "\n".join([table.title, "", header, rule, *rows])
