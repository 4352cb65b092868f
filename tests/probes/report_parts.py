"""Parts of a report by name, as tests look at them."""

from __future__ import annotations

from probes.reporting.records import Figure, Report, Table


def figure(report: Report, name: str) -> Figure:
    return next(item for item in report.figures if item.name == name)


def table(report: Report, name: str) -> Table:
    return next(item for item in report.tables if item.name == name)


def text(found: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in found.rows]
