"""``python -m plugins list`` and ``python -m plugins check NAME``."""

from __future__ import annotations

from nml.cli import Parser, run
from nml.conformance import show
from nml.errors import UserError
from plugins.registry import HEADS

EPILOG = """
examples:
  python -m plugins list
  python -m plugins list --load     also import every head, and say which do not load
  python -m plugins check nmtune
"""


def build_parser() -> Parser:
    """Return the parser of both subcommands."""
    parser = Parser("python -m plugins", "List or check registered heads.", epilog=EPILOG, config=False)
    commands = parser.add_subcommands(dest="command")
    listing = Parser("python -m plugins list", "Name every registered head and its distribution.")
    listing.add_argument("--load", action="store_true", help="also import every head; say which fail")
    check = Parser("python -m plugins check", "Hold a head to its contract, check by check.", epilog=EPILOG)
    check.add_argument("name", type=str, help="a registered head, see: python -m plugins list")
    check.add_argument("--device", type=str, default="cpu", help="where the head computes, such as cuda:0")
    commands.add_subcommand("list", listing, help="name every registered head and who brings it")
    commands.add_subcommand("check", check, help="hold a head to its contract")
    return parser


def check(name: str, device: str) -> int:
    """Print one line a check; return 1 if any failed."""
    head = HEADS.load(name, where="head")
    import torch

    from plugins.conformance import run_checks

    # The problems are tiny: threads would cost more than they bring.
    torch.set_num_threads(1)
    return show(run_checks(head, device=device), f"{name} of {HEADS.find(name).owner}")


def main(argv: list[str] | None = None) -> int:
    """Run the subcommand that was named."""
    arguments = build_parser().parse_args(argv)
    if arguments.command == "list":
        HEADS.show(load=arguments.list.load)
        return 0
    if arguments.command == "check":
        return check(arguments.check.name, arguments.check.device)
    raise UserError("no command", possible="list, check NAME")


if __name__ == "__main__":
    run(main)
