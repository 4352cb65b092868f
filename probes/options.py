"""The command line of ``python -m probes.run`` as one checked record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nml import cli
from nml.errors import UserError, unknown_name
from nml.levels import parse_ratio
from plugins.registry import HEADS
from plugins.spectra import CONVENTIONS, Convention

DEFAULT_TASK = "digits"
ALL_STEPS = "all"
EXAMPLES = """\
examples:
  python -m probes.run --plugin nmtune
      the newest finished pre-training run in runs/, on the bundled digits
  python -m probes.run --plugin lp,mlp,nmtune --checkpoint runs/a runs/b --seeds 3 --fractions 0.1 0.5 1
      two encoders, three heads, three seeds; every encoder reads the data once
  python -m probes.run --plugin lp --checkpoint runs/a --steps all
      every checkpoint that the run has kept
  python -m probes.run --plugin lp --encoder timm:resnet50 --task parquet:train.parquet,test.parquet
      your own images; columns are found, or named: ...,image=img,label=y
  python -m probes.run --plugin lp --encoder timm:resnet50 --task csv:a.csv,b.csv,label=y,target=regression
      numbers; target=multilabel,separator=bar is several classes a sample
  python -m probes.run --plugin nmtune --hyper lr=0.0001,0.001,0.01
      validation data chooses the learning rate
  python -m probes.run --config study.yaml
      a whole study in a file: the options above, without their dashes

tasks: python -m probes.tasks list      encoders: python -m probes.encoders list
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What one study is asked to measure: encoders x tasks x heads x fractions x seeds x downstream noise.

    The metadata of a field is its ``help``, which says what it is.

    Raises:
        UserError: If a value is impossible.
    """

    plugin: str = field(default="lp,mlp,nmtune", metadata={"help": "heads, comma-separated"})
    checkpoint: list[str] = field(
        default_factory=list,
        metadata={
            "help": "pre-training runs, checkpoints or exports; default, without --encoder: the newest "
            "finished run in runs/"
        },
    )
    steps: list[str] = field(
        default_factory=list,
        metadata={
            "help": "all, or steps, whose checkpoints the runs of --checkpoint have kept; default: the newest"
        },
    )
    encoder: list[str] = field(
        default_factory=list, metadata={"help": "other encoders: timm:NAME, transformers:NAME, ..."}
    )
    task: list[str] = field(
        default_factory=list,
        metadata={"help": "tasks: a name, or parquet:TRAIN,TEST and the like; default: the bundled digits"},
    )
    results: str = field(default="results", metadata={"help": "folder of result rows"})
    features: str = field(default="features", metadata={"help": "folder of the feature store"})
    save_heads: str | None = field(
        default=None, metadata={"help": "folder to save the fitted heads in, for probes.predict"}
    )
    receipt: str | None = field(
        default=None, metadata={"help": "JSON file to list the ids of the rows asked for in"}
    )
    allow_overlap: bool = field(
        default=False,
        metadata={"help": "probe on your own data although training and test data share samples"},
    )
    tasks_root: str = field(default="data/tasks", metadata={"help": "folder of prepared tasks"})
    require_signature: str | None = field(
        default=None,
        metadata={"help": "public key: refuse checkpoints whose export is not signed by it"},
    )
    allow_key: list[str] = field(
        default_factory=list,
        metadata={
            "help": "VARIABLE@HOST: the key in a variable that an encoder of a config file may send to a "
            "host; only on the command line"
        },
    )
    seeds: int = field(default=1, metadata={"help": "number of seeds"})
    fractions: list[float] = field(
        default_factory=lambda: [1.0], metadata={"help": "shares of the training data, above 0 to 1"}
    )
    downstream_noise: list[float] = field(
        default_factory=lambda: [0.0], metadata={"help": "shares of training labels to flip"}
    )
    downstream_model: list[str] = field(
        default_factory=lambda: ["symmetric"],
        metadata={"help": "noise models that flip them: NAME or NAME:FILE, those of shards.write --model"},
    )
    hyper: list[str] = field(
        default_factory=list,
        metadata={"help": "[HEAD.]NAME=VALUE[,VALUE...]; several: validation chooses"},
    )
    tries: int | None = field(
        default=None,
        metadata={
            "help": "settings to try of each head on validation data, 4 if not given; 1: its defaults alone"
        },
    )
    views: int = field(default=0, metadata={"help": "augmented views of the training images to add"})
    svd: Convention = field(default="raw", metadata={"help": "singular value convention"})
    head_spectra: bool = field(
        default=True, metadata={"help": "also the spectrum of each head's transformed features"}
    )
    device: str = field(default="auto", metadata={"help": "cpu, cuda or auto"})
    batch_size: int = field(default=64, metadata={"help": "samples a forward pass of the encoder"})

    def __post_init__(self) -> None:
        for name, least in (("seeds", 1), ("tries", 1), ("views", 0), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{cli.flag_of(name)} {value}", possible=f"{least} or more")
        for step in self.steps:
            if step != ALL_STEPS and not (step.isascii() and step.isdecimal()):
                raise UserError(f"--steps {step}", possible=f"{ALL_STEPS}, or numbers of steps")
        if ALL_STEPS in self.steps and len(self.steps) > 1:
            raise UserError(f"--steps {' '.join(self.steps)}", possible=f"{ALL_STEPS}, or numbers of steps")
        if self.steps and not self.checkpoint:
            raise UserError(f"--steps {' '.join(self.steps)}: of no run", mend="name one: --checkpoint RUN")
        for part in self.fractions:
            if not 0 < part <= 1:
                raise UserError(f"--fractions {part}", possible="above 0 to 1, for example 0.1 0.5 1")
        for ratio in self.downstream_noise:
            parse_ratio(ratio, where="--downstream-noise")
        if self.downstream_model != ["symmetric"] and not any(self.downstream_noise):
            raise UserError(
                f"--downstream-model {' '.join(self.downstream_model)}: no label is flipped",
                mend="say how many, for example --downstream-noise 0.2, or leave it out",
            )
        others = [text for text in self.encoder if not text.startswith("checkpoint:")]
        if self.require_signature and not self.checkpoint and others and others == self.encoder:
            raise UserError(
                f"--require-signature {self.require_signature}: no checkpoint is asked for",
                mend="leave it out: other encoders have none",
            )
        if self.svd not in CONVENTIONS:
            raise unknown_name("--svd", self.svd, CONVENTIONS)
        for name in ("results", "features", "save_heads"):
            folder = Path(getattr(self, name) or ".")
            if folder.exists() and not folder.is_dir():
                raise UserError(f"{cli.flag_of(name)} {folder}: is a file", possible="a folder, new or not")
        if self.receipt and Path(self.receipt).is_dir():
            raise UserError(f"--receipt {self.receipt}: is a folder", possible="a file, new or not")

    @property
    def heads(self) -> list[str]:
        """The names of the heads."""
        return [name.strip() for name in self.plugin.split(",") if name.strip()]

    @property
    def tasks(self) -> list[str]:
        """The tasks, the bundled digits where none is named."""
        return self.task or [DEFAULT_TASK]


def parse_options(argv: Sequence[str] | None) -> Options:
    """Return the options of a command line or of the file that its ``--config`` names.

    Raises:
        UserError: If a value is impossible.
    """
    return _checked(build_parser().parse_args(argv))


def _checked(namespace: Any) -> Options:
    options = Options(**cli.given_options(namespace, Options))
    # Names first: a misspelt one is told before torch is even imported.
    for name in options.heads:
        HEADS.find(name)
    check_tasks(options.tasks)
    check_hyper(options)
    return options


def check_hyper(options: Options) -> None:
    """Check hyper-parameters as far as the heads that they are for can be asked here.

    Where one of the heads does not load, another machine may have what it wants, and is the one to judge.

    Raises:
        UserError: If one is unknown, set twice, or has an impossible value.
    """
    if not options.hyper:
        return
    for name in options.heads:
        try:
            HEADS.load(name)
        except UserError:
            return
    # Torch comes with it, which --help needs not wait for.
    from probes.heads import choose_heads

    try:
        choose_heads(options.plugin, options.hyper, "image")
    except UserError:
        raise
    except Exception:
        # What a head of others lacks on this machine, such as a file or a GPU, is no fault of its options.
        return


def check_tasks(texts: Sequence[str]) -> None:
    """Check tasks as far as that needs none of their data.

    Raises:
        UserError: If one is unknown, or has an option that it does not take.
    """
    # Numpy and pyarrow come with them, which --help needs not wait for.
    from probes.tasks.registry import check_spec

    for text in texts:
        check_spec(text)


def build_parser() -> cli.Parser:
    """Return the parser of ``python -m probes.run``."""
    parser = cli.Parser(
        "python -m probes.run",
        "Train heads on the features of frozen encoders and measure them, in-domain and out-of-domain.",
        epilog=EXAMPLES,
        check=_checked,
    )
    cli.add_options(parser, Options)
    return parser
