"""What a user asked the writer for; equal requests give equal bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from nml.errors import UserError
from nml.levels import decimal_text
from shards import hashing
from shards.features import describe_input
from shards.ladder import Level, check_ratios
from shards.layout import ShardLimits
from shards.resize import Resize


@dataclass(frozen=True, kw_only=True)
class WriteRequest:
    """What the user asked for.

    Attributes:
        source: The source as typed.
        ratios: Noise ratios, exact, in the order asked; the first is what ``.cls``/``.txt`` hold.
        model: Noise model, or None for the default one of the source's kind.
        model_file: File the model reads, or None.
        names: Names of the levels above 0; where there are none, their ratios name them.
        own_rate: Whether the model's own rate was asked for, besides the ratios.
        skip_bad: How many samples that cannot be taken may be left out.
        decode_check: Whether an image that cannot be decoded is one of them; it is where images are resized.
        resize: How images are made smaller; None to copy them as they are.
        encoder: Encoder that computes the features the model reads, or None.
        seed: Seed of the noise and of the write order.
        limits: Size of shards.
        options: Further options of the source: split and column names.
        chain: Whether a source that is itself a noisy set may be noised on top.
        force: Whether noise may touch a validation or test split.
    """

    source: str
    ratios: tuple[Fraction, ...]
    model: str | None
    model_file: str | None
    seed: int
    limits: ShardLimits
    options: dict[str, str]
    chain: bool = False
    force: bool = False
    encoder: str | None = None
    own_rate: bool = False
    skip_bad: int = 0
    decode_check: bool = False
    names: tuple[str, ...] = ()
    resize: Resize | None = None

    def __post_init__(self) -> None:
        check_ratios(self.ratios, self.names)
        if self.skip_bad < 0:
            raise UserError(f"--skip-bad {self.skip_bad}: less than none", possible="0 and above")

    def as_json(self) -> dict[str, Any]:
        """Return what plan.json and set.json store."""
        return {
            "source": self.source,
            "noise": [decimal_text(ratio) for ratio in self.ratios],
            "model": self.model,
            "model_file": self.model_file,
            "seed": self.seed,
            "max_shard_size": self.limits.size,
            "max_shard_count": self.limits.count,
            "options": {name: value for name, value in sorted(self.options.items()) if value},
            "hashing": hashing.VERSION,
            **({"encoder": self.encoder} if self.encoder else {}),
            **({"own_rate": True} if self.own_rate else {}),
            **({"names": list(self.names)} if self.names else {}),
            **({"skip_bad": self.skip_bad} if self.skip_bad else {}),
            **({"decode_check": True} if self.decode_check else {}),
            **({"resize": self.resize.asked()} if self.resize else {}),
        }


def refuse_changed_model_file(levels: Iterable[Level], request: WriteRequest, shown: str) -> None:
    """Raise a UserError if the model's file is not the one that a set's levels were planned from.

    A path is not its content: without this, a set with the labels of the former file would pass for done.

    Args:
        levels: Of the set, or of the plan of an interrupted write.
        request: What is asked now.
        shown: What a message calls the set.
    """
    if request.encoder or not request.model_file:
        return
    read = describe_input(request.model_file, None)
    planned = [level.model_input for level in levels if level.model == request.model and level.model_input]
    if read and planned and read not in planned:
        raise UserError(
            f"--model-file {request.model_file}: changed since {shown} was written from it (SHA-256 "
            f"{planned[0].get('file_sha256', '')[:12]} there, {read['file_sha256'][:12]} now)",
            mend="choose another --out, or restore the file",
        )


def difference(found: dict[str, Any], asked: dict[str, Any]) -> str:
    """Return what differs between two requests, in words; empty if nothing does."""
    names = [name for name in sorted(found.keys() | asked.keys()) if found.get(name) != asked.get(name)]
    return ", ".join(f"{name}: {found.get(name)} there, {asked.get(name)} asked" for name in names)
