"""``python -m probes.encoders list``: the kinds of encoders, and the paper's models by name."""

from __future__ import annotations

from nml.cli import Parser, run
from probes.encoders.paper_models import PAPER_MODELS
from probes.encoders.registry import ENCODERS


def main() -> None:
    """Print what --encoder takes."""
    parser = Parser("python -m probes.encoders", "List what --encoder takes.", config=False)
    parser.add_argument("command", type=str, choices=["list"])
    parser.parse_args()
    print("kinds")
    for plugin in ENCODERS.discover():
        print(f"  {plugin.name:14} {plugin.owner:32} {plugin.value}")
    print("the paper's models")
    for name, spec in PAPER_MODELS.items():
        print(f"  {name:36} --encoder {spec}")


if __name__ == "__main__":
    run(main)
