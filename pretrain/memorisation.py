"""``python -m pretrain.memorisation``: what a run made of its labels, as numbers and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nml import cli, layout
from nml.curves import metrics_lines
from nml.errors import UserError
from nml.files import write_bytes
from nml.text_table import in_columns
from nml.untrusted import read_object
from pretrain.memorised import finding_flipped, read_memorisation

PAGE = "memorisation.html"
EPILOG = """examples:
  python -m pretrain.run --noise 0.2 --memorisation
  python -m pretrain.memorisation runs/quickstart-n20-seed0          the page is in the run folder
  python -m pretrain.memorisation runs/a --out a.html --pictures 24"""


class Measure(NamedTuple):
    """A measure by which flipped labels are looked for.

    Attributes:
        name: What it is.
        values: Of each sample, low where a label seems wrong, float64 [n].
        auc: Area under the ROC curve of finding the flipped ones; NaN without any.
    """

    name: str
    values: npt.NDArray[np.float64]
    auc: float


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = cli.Parser(
        "python -m pretrain.memorisation",
        "Show what a run with --memorisation learnt, forgot and memorised: curves, distributions, how well\n"
        "each measure finds the flipped labels, and the samples memorised most and least.",
        epilog=EPILOG,
    )
    parser.add_argument("run", type=str, help="run folder")
    parser.add_argument(
        "--out", type=str, default=None, help=f"page to write; default: {PAGE} in the run folder"
    )
    parser.add_argument("--pictures", type=int, default=12, help="samples of each kind to show, 0 to 100")
    options = parser.parse_args(argv)
    if not 0 <= options.pictures <= 100:
        raise UserError(f"--pictures {options.pictures}", possible="0 to 100")
    run, out = Path(options.run), Path(options.out or Path(options.run) / PAGE)
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder", possible="a file name")
    rows = read_memorisation(run / layout.MEMORISATION)
    if not len(rows):
        raise UserError(f"{run / layout.MEMORISATION}: holds no sample", possible="what pretrain.run wrote")
    found = measures(rows)
    lines = [line for line in metrics_lines(run / layout.METRICS) if line.get("event") == "noise"]
    print("\n".join(summary(rows, found)))
    # It takes a second that refused options need not wait for.
    from pretrain.memorisation_page import page

    write_bytes(out, page(run, rows, found, lines, pictures=options.pictures).encode())
    print(f"page: {out}")


def measures(rows: pa.Table) -> list[Measure]:
    """Return the measures of a run's samples, the margin first."""
    flipped = rows["flipped"].to_numpy()
    margin = rows["margin"].to_numpy().astype(np.float64)
    learnt = rows["learnt"].fill_null(np.iinfo(np.int32).max).to_numpy().astype(np.float64)
    forgotten = rows["forgotten"].to_numpy().astype(np.float64)
    kinds = {
        "margin (AUM)": margin,
        "epoch first learnt": -learnt,
        "times forgotten": -forgotten,
    }
    if not rows["given"].null_count:
        kinds["last prediction"] = (rows["predicted"].to_numpy() == rows["given"].to_numpy()).astype(float)
    return [Measure(name, values, finding_flipped(flipped, values)) for name, values in kinds.items()]


def summary(rows: pa.Table, found: list[Measure]) -> list[str]:
    """Return the lines of the text: both groups, and how well each measure finds the flipped ones."""
    flipped = rows["flipped"].to_numpy()
    lines = [("", "samples", "learnt", "forgotten", "margin")]
    for name, group in (("kept", ~flipped), ("flipped", flipped)):
        if group.any():
            part = rows.filter(pa.array(group))
            lines.append(
                (
                    name,
                    f"{len(part):,}",
                    f"{100 * (1 - part['learnt'].null_count / len(part)):.1f} %",
                    f"{np.mean(part['forgotten'].to_numpy()):.2f}",
                    f"{np.mean(part['margin'].to_numpy()):.3f}",
                )
            )
    told = in_columns(lines, text_columns=1)
    if flipped.any() and not flipped.all():
        ranked = [("finds flipped labels by", "AUC"), *((each.name, f"{each.auc:.3f}") for each in found)]
        told += ["", *in_columns(ranked, text_columns=1)]
    return list(told)


def set_of(run: Path) -> dict[str, Any]:
    """Return what the export of a run says of its noise: ``level``, ``set_path``, ``set_fingerprint``.

    Raises:
        UserError: If there is none, or it does not read.
    """
    file = run / layout.EXPORT / layout.META
    try:
        noise = read_object(file, noise=dict)["noise"]
        return {name: str(noise[name]) for name in ("level", "set_path", "set_fingerprint")}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{file}: does not read: {error}", possible="a run folder of pretrain.run") from error


if __name__ == "__main__":
    cli.run(main)
