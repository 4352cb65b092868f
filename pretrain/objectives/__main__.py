"""``python -m pretrain.objectives list``."""

from __future__ import annotations

from nml.cli import Parser, run
from nml.objectives import OBJECTIVES

EPILOG = """\
examples:
  python -m pretrain.objectives list
"""


def main(argv: list[str] | None = None) -> int:
    """List the objectives."""
    parser = Parser("python -m pretrain.objectives", "List objectives.", epilog=EPILOG, config=False)
    parser.add_argument("command", type=str, choices=["list"], help="what to do")
    parser.parse_args(argv)
    OBJECTIVES.show()
    return 0


if __name__ == "__main__":
    run(main)
