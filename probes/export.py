"""``python -m probes.export HEAD --onnx FILE``: a saved head for use without this project."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nml.cli import Parser, run
from nml.errors import UserError
from nml.files import write_bytes

EPILOG = """\
examples:
  python -m probes.run --plugin lp --encoder timm:resnet50 --task imagefolder:train,test --save-heads heads
  python -m probes.export heads/lp-1f0c2b7a5d3e4968 --onnx head.onnx

in Python: onnxruntime.InferenceSession("head.onnx").run(None, {"features": features})
"""


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(
        "python -m probes.export", "Write a saved head as an ONNX file, calibrated.", epilog=EPILOG
    )
    parser.add_argument("head", type=str, help="folder of a head, see probes.run --save-heads")
    parser.add_argument("--onnx", type=str, required=True, help="a new .onnx file")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments = build_parser().parse_args(argv)
    out = Path(arguments.onnx)
    if out.suffix != ".onnx":
        raise UserError(f"--onnx {out}", possible="a file with .onnx")
    if out.exists():
        raise UserError(f"--onnx {out}: exists already", mend="name another file, or remove it")
    from plugins.onnx_export import onnx_bytes
    from plugins.saved import load_head

    saved = load_head(arguments.head)
    write_bytes(out, onnx_bytes(saved))
    print(
        f"onnx: {out} (features [N, {saved.dim}] -> "
        + (
            "values [N, 1])"
            if saved.target == "regression"
            else f"logits and probabilities [N, {saved.outputs}], temperature {saved.temperature:.3g})"
        )
    )


if __name__ == "__main__":
    run(main)
