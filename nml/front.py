"""``nml``: one door to every command of the project.

The console script finds the packages by how they are installed, never by the folder it is called in, so
that a user's own folders ``plugins/`` or ``shards/`` are not taken for the project's. Each command stays
available as ``python -m MODULE``; only the module of the one that is called is imported.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import NamedTuple

from nml.errors import UserError, unknown_name

_ROOT = Path(__file__).resolve().parents[1]
_LAUNCHER = "slurm.entry"


class Command(NamedTuple):
    """What a name stands for.

    Attributes:
        module: The module whose ``main`` is called.
        words: What is put before the user's own words.
        summary: One line of help.
    """

    module: str
    words: tuple[str, ...]
    summary: str


COMMANDS = {
    "shards write": Command(
        "shards.write", (), "write images and labels as shards, with exactly the noise asked"
    ),
    "shards plan": Command("shards.plan", (), "plan a set, for any number of processes to pack"),
    "shards encode": Command("shards.encode", (), "compute a part of the features that a plan is made from"),
    "shards pack": Command("shards.pack", (), "pack a part of the shards of a plan"),
    "shards finish": Command("shards.finish", (), "make a set of shards that are all packed"),
    "shards info": Command(
        "shards.info", (), "show what a set holds: samples, classes, noise of every level"
    ),
    "shards verify": Command("shards.verify", (), "check hashes, counts, nesting and images of a set"),
    "shards sign": Command("shards.sign", (), "sign a set with a key of yours"),
    "shards relabel": Command("shards.relabel", (), "add noise levels to a set; images are not touched"),
    "shards audit": Command("shards.audit", (), "tell what noise a published file of labels really holds"),
    "shards cache": Command("shards.cache", (), "decode a set's images once more, to be read faster"),
    "shards index": Command("shards.index", (), "index WebDataset tars in place"),
    "shards noise": Command("shards.noise.__main__", (), "list noise models, hold one to its contract"),
    "shards sources": Command("shards.sources.__main__", (), "list sources, hold one to its contract"),
    "pretrain": Command(_LAUNCHER, ("pretrain",), "pre-train one encoder, on Slurm or on this machine"),
    "sweep": Command(_LAUNCHER, ("sweep",), "shards, pre-training, probes and report of a noise ladder"),
    "status": Command(_LAUNCHER, ("status",), "how far runs and sweeps are"),
    "usage": Command(_LAUNCHER, ("usage",), "node- and GPU-hours of runs and sweeps, useful or lost"),
    "doctor": Command(_LAUNCHER, ("doctor",), "look for what a long job would fail of"),
    "logs": Command(_LAUNCHER, ("logs",), "what a run says"),
    "cancel": Command(_LAUNCHER, ("cancel",), "stop runs and sweeps; they can continue"),
    "resume": Command(_LAUNCHER, ("resume",), "continue what was stopped"),
    "launch": Command(_LAUNCHER, (), "all of the launcher, writing shards and probing as jobs too"),
    "train": Command("pretrain.run", (), "one process of a run, as torchrun and the launcher start it"),
    "curves": Command("pretrain.curves", (), "draw the curves of runs in one picture"),
    "objectives": Command(
        "pretrain.objectives.__main__", (), "list what encoders are trained to do, hold one to its contract"
    ),
    "memorisation": Command("pretrain.memorisation", (), "show what a run learnt, forgot and memorised"),
    "export": Command(
        "pretrain.export", (), "write the encoder of a checkpoint for use without this project"
    ),
    "publish": Command("pretrain.publish", (), "put runs into the layout of the Hugging Face Hub"),
    "plugins list": Command("plugins.__main__", ("list",), "name every registered head"),
    "plugins check": Command("plugins.__main__", ("check",), "hold a head to its contract"),
    "probes run": Command("probes.run", (), "train heads on frozen features and measure them, ID and OOD"),
    "probes tune": Command("probes.tune", (), "fine-tune encoders and measure them, ID and OOD"),
    "probes predict": Command("probes.predict", (), "classify features with a saved head"),
    "probes export": Command("probes.export", (), "write a saved head as an ONNX file"),
    "probes tasks": Command("probes.tasks.__main__", (), "list tasks, show one, fetch its data, check it"),
    "probes encoders": Command("probes.encoders.__main__", (), "list what --encoder takes, check it"),
    "probes features": Command("probes.features.__main__", (), "look after the feature store"),
    "probes results": Command("probes.results.__main__", (), "show, query, export and trace results"),
    "report": Command("probes.report", (), "the HTML report of a results folder"),
    "power": Command("probes.power", (), "plan a study: how many runs show a difference"),
    "predict noise": Command(
        "probes.predict_noise", (), "tell whether early measures tell what noise does in the end"
    ),
    "completion": Command("nml.completion", (), "print the completion of a shell: bash or zsh"),
}

_called = False


def console() -> None:
    """Be the console script: answer at once where only help is asked for."""
    if sys.argv[1:] in ([], ["-h"], ["--help"]):
        print(overview())
        return
    from nml import cli

    cli.run(main)


def main() -> int | None:
    """Run the command that the first words name."""
    global _called
    name, command, rest = find(sys.argv[1:])
    _called = True
    sys.argv = [f"nml {name}", *command.words, *rest]
    status: int | None = importlib.import_module(command.module).main()
    return status


def find(words: list[str]) -> tuple[str, Command, list[str]]:
    """Return the command that words begin with, its name, and the words that are left.

    Raises:
        UserError: If there is none.
    """
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return name, COMMANDS[name], words[length:]
    seconds = [name.split()[1] for name in COMMANDS if name.startswith(f"{words[0]} ")]
    if not seconds:
        raise unknown_name(
            "command", words[0], {name.split()[0] for name in COMMANDS}, mend="see: nml --help"
        )
    if len(words) == 1 or words[1].startswith("-"):
        raise UserError(
            f"nml {words[0]}: no command named", possible=", ".join(seconds), mend="see: nml --help"
        )
    raise unknown_name(f"nml {words[0]}", words[1], seconds, mend="see: nml --help")


def overview() -> str:
    """Return the help of ``nml`` itself: every command in one screen."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: nml COMMAND [options]      nml COMMAND --help says more",
            "",
            "Pre-train on data whose label noise is known exactly; measure and repair what it does.",
            "",
            *lines,
            "",
            "example: nml pretrain --noise 0.2 --nodes 8",
        ]
    )


def spelled(program: str) -> str:
    """Return a program as its user can type it again: by ``nml`` where that was called, else unchanged."""
    if not _called:
        return program
    words = program.split()
    for length in (4, 3):
        for name, command in COMMANDS.items():
            form = ["python", "-m", command.module.removesuffix(".__main__"), *command.words]
            if words[:length] == form:
                return " ".join(["nml", name, *words[length:]])
    return program


def ignore_namesakes() -> None:
    """Let no folder or file of the working folder stand in for a package of this project.

    ``python -m`` puts the working folder first on the search path. Where something there has the name of
    a room, that entry is taken out, and one line says so.
    """
    here = Path(sys.path[0] or ".").resolve()
    if sys.flags.safe_path or here != Path.cwd() or here == _ROOT:
        return
    # Nothing imports the launcher; a folder of that name beside one's job scripts is common.
    rooms = sorted({command.module.split(".")[0] for command in COMMANDS.values()} - {"nml", "slurm"})
    hidden = [name for name in rooms if _lies_in(here, name)]
    if hidden:
        del sys.path[0]
        importlib.invalidate_caches()
        names = ", ".join(hidden)
        print(
            f"note: {names} in this folder has the name of a package of this project and is not used; "
            "the command nml never looks here",
            file=sys.stderr,
        )


def _lies_in(folder: Path, package: str) -> bool:
    if not (folder / package).is_dir() and not (folder / f"{package}.py").is_file():
        return False
    spec = importlib.util.find_spec(package)
    places = [spec.origin, *(spec.submodule_search_locations or ())] if spec else []
    return any(place and folder in Path(place).resolve().parents for place in places)
