"""Zero-shot classification: class names put into prompts (Radford et al. 2021, section 3.1).

Class names come from the set, from a file of the user's, or are open_clip's for ImageNet-1k; so do templates.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from nml.errors import UserError
from nml.run_options import IMAGENET_NAMES, OPENAI_TEMPLATES
from pretrain.engines import Engine

TEMPLATES = ("a photo of a {}.",)
# Texts of one forward pass.
_BATCH = 256
_SYNSET = re.compile(r"n\d{8}")


class Prompts(NamedTuple):
    """What the text tower reads for each class.

    Attributes:
        names: A name a class, in the order of the set's classes.
        templates: Sentences with ``{}`` where the name goes; a class is the mean of its sentences.
    """

    names: tuple[str, ...]
    templates: tuple[str, ...]


def read_prompts(class_names: str | None, templates: str | None, classes: tuple[str, ...]) -> Prompts:
    """Return the prompts of a validation set.

    Args:
        class_names: A file with a name a line in the order of ``classes``; ``imagenet``; None for
            the names of the classes themselves, with spaces for underscores.
        templates: A file with a template a line; ``openai`` for its 80 of ImageNet; None for one.
        classes: The set's classes.

    Raises:
        UserError: If a file does not read, or does not fit.
    """
    return Prompts(_names(class_names, classes), _templates(templates))


def _names(given: str | None, classes: tuple[str, ...]) -> tuple[str, ...]:
    if given is None:
        if all(_SYNSET.fullmatch(name) for name in classes):
            raise UserError(
                f"--validation: its classes are WordNet ids ({classes[0]}), which say nothing in a prompt",
                mend="--class-names imagenet for the 1,000 of ImageNet-1k, or a file with a name a line",
            )
        return tuple(name.replace("_", " ") for name in classes)
    if given == IMAGENET_NAMES:
        from open_clip import IMAGENET_CLASSNAMES

        names = tuple(IMAGENET_CLASSNAMES)
    else:
        names = _lines("--class-names", given, possible=f"a text file, or {IMAGENET_NAMES}")
    if len(names) != len(classes):
        raise UserError(
            f"--class-names {given}: {len(names)} names, and the validation set has {len(classes)} classes",
            mend="give a name a line, in the sorted order of the set's classes",
        )
    return names


def _templates(given: str | None) -> tuple[str, ...]:
    if given is None:
        return TEMPLATES
    if given == OPENAI_TEMPLATES:
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    found = _lines("--templates", given, possible=f"a text file, or {OPENAI_TEMPLATES}")
    for template in found:
        if "{}" not in template:
            raise UserError(f"--templates {given}: {template!r} has no {{}} where the class name goes")
    return found


def _lines(flag: str, path: str, *, possible: str) -> tuple[str, ...]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{flag} {path}: does not read ({error})", possible=possible) from error
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not lines:
        raise UserError(f"{flag} {path}: is empty", possible=possible)
    return lines


def class_embeddings(engine: Engine, tokenizer: Callable[[list[str]], Any], prompts: Prompts) -> torch.Tensor:
    """Return a unit vector a class, float32 [K, D]. Collective: each rank embeds its share of the classes.

    Ranks whose weights are sharded must call the network equally often, so all take equally many.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    own = range(rank, len(prompts.names), world)
    share = -(-len(prompts.names) // world)
    at_once = max(1, _BATCH // len(prompts.templates))
    rows: list[torch.Tensor] = []
    for start in range(0, share, at_once):
        numbers = [
            own[place] if place < len(own) else 0 for place in range(start, min(share, start + at_once))
        ]
        # str.replace: a name may hold braces of its own.
        texts = [
            template.replace("{}", prompts.names[number])
            for number in numbers
            for template in prompts.templates
        ]
        features = engine.forward(None, tokenizer(texts).to(engine.device))["text_features"].float()
        mean = features.reshape(len(numbers), len(prompts.templates), -1).mean(dim=1)
        rows.append(torch.nn.functional.normalize(mean, dim=1).cpu())
    embedded = torch.cat(rows)
    every = torch.zeros(len(prompts.names), embedded.shape[1])
    every[own] = embedded[: len(own)]
    dist.all_reduce(every)
    return every
