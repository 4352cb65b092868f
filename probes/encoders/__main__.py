"""``python -m probes.encoders``: the kinds of encoders and the paper's models by name, and checking one."""

from __future__ import annotations

from nml.cli import Parser, refuse_unused, run
from nml.conformance import outcomes, show
from nml.errors import UserError
from probes.encoders.registry import ENCODERS, PAPER_MODELS, open_with
from probes.spec import split_spec

EPILOG = """\
examples:
  python -m probes.encoders list
  python -m probes.encoders check timm:resnet18,weights=a.pt --other timm:resnet18,weights=b.pt
      hold an encoder to its contract, check by check
"""


def main(argv: list[str] | None = None) -> int:
    """Print what --encoder takes, or hold an encoder to its contract; return 1 if a check failed."""
    parser = Parser(
        "python -m probes.encoders", "List what --encoder takes, or check it.", epilog=EPILOG, config=False
    )
    add = parser.add_argument
    add("command", type=str, choices=["list", "check"], help="what to do")
    add("encoder", type=str, nargs="?", default="", help="the encoder to check, as --encoder takes it")
    add("--other", type=str, default="", help="the same with other weights, whose features must differ")
    add("--device", type=str, default="cpu", help="where it computes, such as cuda:0")
    arguments = parser.parse_args(argv)
    refuse_unused(parser, arguments, dict.fromkeys(("encoder", "other", "device"), ("check",)))
    if arguments.command == "list":
        _list()
        return 0
    if not arguments.encoder:
        raise UserError("check: no encoder named", mend="see: python -m probes.encoders list")
    from probes.encoders.conformance import CHECKS, Subject
    from probes.encoders.encoder import Settings

    kind = split_spec(arguments.encoder).kind
    opener, settings = ENCODERS.load(kind, where="encoder"), Settings(device=arguments.device)
    # What is missing is the user's to mend, not a promise broken.
    open_with(opener, split_spec(arguments.encoder), settings)
    found = outcomes(CHECKS, Subject(opener, arguments.encoder, arguments.other, settings))
    return show(found, f"{arguments.encoder} of {ENCODERS.find(kind).owner}")


def _list() -> None:
    print("kinds")
    for plugin in ENCODERS.discover():
        print(f"  {plugin.name:14} {plugin.owner:32} {plugin.value}")
    print("the paper's models")
    for name, spec in PAPER_MODELS.items():
        print(f"  {name:36} --encoder {spec}")


if __name__ == "__main__":
    run(main)
