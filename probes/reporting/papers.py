"""Tables for papers and programs: every number of the report as CSV, and booktabs tables with intervals."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from nml.delimited import comma_separated
from probes.reporting.records import Cell, Report, Table
from probes.reporting.wording import NONE
from probes.results.export import escape_latex

# What the reports' own texts have beyond ASCII, as pdflatex takes it without further packages.
_SYMBOLS = {
    "−": "$-$",
    "±": r"$\pm$",
    "–": "--",
    "\N{NO-BREAK SPACE}": "~",
    "χ": r"$\chi$",
    "²": r"$^2$",
    "ρ": r"$\rho$",
    "σ": r"$\sigma$",
    "λ": r"$\lambda$",
    "×": r"$\times$",
}
_GROUPED = re.compile(r"\d{1,3}(,\d{3})+(\.\d+)?")


def all_tables(report: Report) -> list[Table]:
    """Return every table of the report, and what every figure draws as one."""
    return [*report.tables, *(figure.data() for figure in report.figures)]


def csv_text(table: Table) -> str:
    """Return a table as CSV in full precision.

    A column of numbers becomes several: its own name has the number that the page rounds, ``NAME: low`` and
    the like what belongs to it. What was not measured is empty.
    """
    parts = [
        list(dict.fromkeys(name for row in table.rows for name, _ in row[column].numbers)) or [""]
        for column in range(len(table.header))
    ]
    # A cell of text in a column of numbers stands under the column's own name.
    parts = [names if "" in names else ["", *names] for names in parts]
    header = [
        f"{head}: {name}" if name else head
        for head, names in zip(table.header, parts, strict=True)
        for name in names
    ]
    lines = [
        [value for cell, names in zip(row, parts, strict=True) for value in _values(cell, names)]
        for row in table.rows
    ]
    return comma_separated([header, *lines])


def _values(cell: Cell, names: Iterable[str]) -> list[str]:
    numbers = dict(cell.numbers)
    own = "" if cell.text == NONE else cell.text
    if _GROUPED.fullmatch(own):
        own = own.replace(",", "")
    return [
        own if not name and "" not in numbers else _number(numbers[name]) if name in numbers else ""
        for name in names
    ]


def _number(value: float | None) -> str:
    return "" if value is None else repr(value)


def has_numbers(table: Table) -> bool:
    """Whether a table is of measurements: definitions and provenance are for the page."""
    return any(cell.numbers for row in table.rows for cell in row)


def latex_text(table: Table) -> str:
    """Return a table for LaTeX's booktabs package, means with their intervals where they have one."""
    columns = "".join("l" if place < table.text_columns else "r" for place in range(len(table.header)))
    body = []
    for number, group in enumerate(table.groups):
        body += [r"\midrule"] if number and table.grouped else []
        for place, row in enumerate(group):
            first = "" if place and table.grouped else _latex_cell(row[0])
            body.append(" & ".join([first, *map(_latex_cell, row[1:])]) + r" \\")
    return "\n".join(
        [
            "% \\usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(f'{table.title}. {table.caption}'.strip())}}}",
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(map(_latex, table.header)) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _latex_cell(cell: Cell) -> str:
    numbers = dict(cell.numbers)
    low, high = numbers.get("low"), numbers.get("high")
    if low is None or high is None or numbers.get("") is None:
        return rf"\textbf{{{_latex(cell.text)}}}" if cell.strong else _latex(cell.text)
    # As many decimals as on the page, and its sign where it shows one.
    shown = cell.text.split(" ")[0]
    digits, sign = len(shown.partition(".")[2]), "+" if shown[0] in "+−" else ""
    ends = ", ".join(f"{round(end, digits) + 0.0:{sign}.{digits}f}" for end in (low, high))
    text = rf"${round(numbers[''] or 0.0, digits) + 0.0:{sign}.{digits}f}$ {{\scriptsize$[{ends}]$}}"
    return rf"{{\bfseries\boldmath {text}}}" if cell.strong else text


def _latex(text: str) -> str:
    return "".join(_character(letter) for letter in escape_latex(text))


def _character(letter: str) -> str:
    if letter.isascii():
        return letter
    if letter in _SYMBOLS:
        return _SYMBOLS[letter]
    # Letters of Latin alphabets are known to every LaTeX; of others, what they stand for is not.
    base = unicodedata.normalize("NFKD", letter)
    return letter if base[0].isascii() and base[0].isalpha() else f"U+{ord(letter):04X}"
