"""``python -m probes.predict HEAD``: what a saved head says of features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nml.cli import Parser, run
from nml.delimited import comma_separated
from nml.errors import UserError
from nml.files import atomic_writer, write_bytes

if TYPE_CHECKING:
    from plugins.saved import SavedHead

EPILOG = """\
examples:
  python -m probes.run --plugin lp --encoder timm:resnet50 --task imagefolder:train,test --save-heads heads
  python -m probes.predict heads/lp-1f0c2b7a5d3e4968 --features new.npy
      predictions.csv: the row, the name of its class and the class's probability; of a task of several
      classes those from their threshold on, and the probability of each; of numbers the value
  python -m probes.predict heads/lp-1f0c2b7a5d3e4968 --features new.npy --out all.npy
      every probability, float32 [N, K]; of numbers the values [N, 1]
  python -m probes.predict heads/lp-1f0c2b7a5d3e4968 --features new.npy --out all.npy --logits
      the scores that they are made of: softmax(logits / temperature)

in Python: plugins.saved.load_head(FOLDER).head.predict_logits(features)
"""
ROWS = 8192
OUTPUTS = (".csv", ".npy")
# Between several classes in one column, as separator=bar reads them.
BETWEEN = "|"


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser("python -m probes.predict", "Classify features with a saved head.", epilog=EPILOG)
    parser.add_argument("head", type=str, help="folder of a head, see probes.run --save-heads")
    parser.add_argument(
        "--features",
        type=str,
        required=True,
        help="features [N, D] of the head's encoder: .npy, .safetensors or .parquet",
    )
    parser.add_argument("--out", type=str, default="predictions.csv", help="a new .csv or .npy file")
    parser.add_argument("--logits", action="store_true", help="write logits, not probabilities; to a .npy")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments = build_parser().parse_args(argv)
    out = Path(arguments.out)
    if out.suffix not in OUTPUTS:
        raise UserError(f"--out {out}", possible="a file with " + " or ".join(OUTPUTS))
    if out.exists():
        raise UserError(f"--out {out}: exists already", mend="name another file, or remove it")
    if arguments.logits and out.suffix != ".npy":
        raise UserError(f"--logits: --out {out}", possible="a .npy file")
    from plugins.saved import load_head
    from probes.answers import HeadFault, predict
    from probes.encoders.feature_files import read_features

    saved = load_head(arguments.head)
    features = read_features(Path(arguments.features), "--features")
    if features.shape[1] != saved.dim:
        raise UserError(
            f"--features {arguments.features}: {features.shape[1]} columns",
            possible=f"{saved.dim}, as {saved.about.get('encoder', 'the encoder of this head')} gives",
        )
    starts = range(0, len(features), ROWS)
    try:
        parts = [predict(saved.head, features[row : row + ROWS], saved.outputs) for row in starts]
    except HeadFault as fault:
        raise UserError(f"{arguments.head}: {fault}", mend="save the head again") from fault
    logits = np.concatenate(parts) if parts else np.empty((0, saved.outputs), np.float32)
    found = logits if arguments.logits else _predicted(logits, saved)
    if out.suffix == ".npy":
        with atomic_writer(out) as file:
            np.save(file, found, allow_pickle=False)
    else:
        write_bytes(out, _table(found, saved).encode())
    print(f"predictions: {out} ({len(logits):,} rows)")


def _predicted(logits: npt.NDArray[np.float32], saved: SavedHead) -> npt.NDArray[np.float32]:
    """Return probabilities [N, K], or numbers [N, 1]."""
    from plugins.calibration import probabilities, shares

    if saved.target == "regression":
        return logits
    made = shares if saved.target == "multilabel" else probabilities
    return made(logits, saved.temperature)


def _table(found: npt.NDArray[np.float32], saved: SavedHead) -> str:
    lines: list[list[object]]
    if saved.target == "regression":
        lines = [["row", "value"]]
        lines += [[row, f"{value:.9g}"] for row, value in enumerate(found[:, 0])]
    elif saved.target == "multilabel":
        lines = [["row", "classes", *saved.classes]]
        for row, values in enumerate(found):
            named = np.flatnonzero(values >= np.array(saved.thresholds))
            classes = BETWEEN.join(saved.classes[place] for place in named)
            lines.append([row, classes, *(f"{value:.6g}" for value in values)])
    else:
        lines = [["row", "class", "probability"]]
        best = zip(found.argmax(axis=1), found.max(axis=1), strict=True)
        lines += [[row, saved.classes[place], f"{value:.6g}"] for row, (place, value) in enumerate(best)]
    return comma_separated(lines)


if __name__ == "__main__":
    run(main)
