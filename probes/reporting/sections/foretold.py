"""What early measures tell of the end, as ``python -m probes.predict_noise --out FILE`` has written it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nml.errors import UserError
from nml.untrusted import Untrusted, read_object, shown, typed
from probes.reporting.records import Cell, Section, Table, cells
from probes.reporting.wording import NONE, several
from probes.results.row import Row

FORMAT = "nml-foretold/3"
_DOMAINS = {"id": "in-domain", "ood": "out-of-domain"}


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One measure of one target; see :class:`probes.reporting.foretelling.Foretold`."""

    measure: str
    levels: int
    error: float
    gain: float | None
    gain_low: float | None
    gain_high: float | None
    p_holm: float | None
    verdict: str


@dataclass(frozen=True, kw_only=True)
class OfFamily:
    """What was found of one family of runs."""

    encoders: str
    runs: int
    levels: tuple[float, ...]
    without_early_rows: tuple[str, ...]
    validation_accuracy: str
    targets: dict[str, tuple[Judged, ...]]
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Document:
    """The file.

    Attributes:
        format: :data:`FORMAT`.
        at: Share of a run up to which a measure is early.
        rows: The rows that it is of, see :func:`told_from`.
        families: What was found.
    """

    format: str
    at: float
    rows: dict[str, str]
    families: tuple[OfFamily, ...]


def told_from(rows: Iterable[Row]) -> dict[str, str]:
    """Return what tells the rows of a results folder from others: of each encoder a hash of their ids."""
    ids: dict[str, list[str]] = {}
    for row in rows:
        ids.setdefault(row.encoder, []).append(row.row_id)
    return {
        encoder: hashlib.sha256("\n".join(sorted(own)).encode()).hexdigest()
        for encoder, own in sorted(ids.items())
    }


def read_foretold(path: Path, rows: Iterable[Row]) -> Document:
    """Return what ``probes.predict_noise`` has written of some rows.

    Raises:
        UserError: If the file is not there, is none, or is of other rows.
    """
    again = f"python -m probes.predict_noise RESULTS --out {path}"
    try:
        record = read_object(path)
        if record.get("format") != FORMAT:
            raise UserError(
                f"--foretold {path}: format {shown(record.get('format'))}", possible=repr(FORMAT), mend=again
            )
        document = typed(Document, record)
    except FileNotFoundError as error:
        raise UserError(f"--foretold {path}: no such file", mend=again) from error
    except OSError as error:
        raise UserError(f"--foretold {path}: cannot be read: {error.strerror or error}") from error
    except Untrusted as error:
        raise UserError(f"--foretold {path}: {error}", possible="a file of probes.predict_noise") from error
    others = {encoder for encoder, _ in document.rows.items() ^ told_from(rows).items()}
    if others:
        raise UserError(
            f"--foretold {path}: it was foretold from other rows of {several(sorted(others))} than these "
            "results have",
            mend=again,
        )
    return document


def section(document: Document) -> Section:
    """Return the section."""
    told = [family for family in document.families if family.targets]
    silent = [f"{family.encoders}: {family.reason}." for family in document.families if family.reason]
    share = f"{100 * document.at:g}\N{NO-BREAK SPACE}%"
    lead = (
        "How far the final scores of a noise level that was left out are told by in-domain measures of the "
        f"first {share} of its runs, by a line through the runs of all other levels."
    )
    return Section(
        name="foretold",
        title="Told before the end",
        intro=" ".join([lead, *silent]),
        items=(_table(told),) if told else (),
    )


def _table(families: list[OfFamily]) -> Table:
    validation = several(sorted({family.validation_accuracy for family in families}))
    return Table(
        name="foretold-table",
        title="Early measures against validation accuracy",
        caption=(
            "Mean absolute error over levels, in points, and by how much it is smaller than that of "
            f"validation accuracy ({validation}), with Student's t interval over levels; p is Holm's "
            "over the measures that were tried. The constant is the mean of the other levels."
        ),
        header=("Encoders", "Final score", "Told from", "Levels", "Error", "Smaller by", "p", "Verdict"),
        rows=tuple(
            cells(family.encoders, _DOMAINS.get(domain, domain), one.measure, *_numbers(one))
            for family in families
            for domain, found in family.targets.items()
            for one in found
        ),
        text_columns=3,
        grouped=True,
    )


def _numbers(one: Judged) -> list[str | Cell]:
    gain = NONE if one.gain is None else f"{one.gain:+.2f}"
    if one.gain_low is not None:
        gain += f" ({one.gain_low:+.2f} to {one.gain_high:+.2f})"
    return [
        Cell(str(one.levels), numbers=(("", one.levels),)),
        Cell(f"{one.error:.2f}", numbers=(("", one.error),)),
        Cell(gain, numbers=(("", one.gain), ("low", one.gain_low), ("high", one.gain_high))),
        Cell(NONE if one.p_holm is None else f"{one.p_holm:.3f}", numbers=(("", one.p_holm),)),
        one.verdict or NONE,
    ]
