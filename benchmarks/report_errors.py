"""How often the report marks a difference that is none, and misses one that is there.

    python benchmarks/report_errors.py [--folders N]

Null folders, 1,000 in all unless told otherwise: heads without any effect of their own, which suit one
pre-training run by chance better than another, 5 noise levels x 2 or 3 runs x 3 or 14 tasks x 3 seeds. All
comparisons of the table of heads and all claims are judged as in the report. Power: 8 runs of one noise
level, and one head whose gain is twice the deviation of that gain between runs.
"""

from __future__ import annotations

import gc
import time
from collections import Counter
from typing import NamedTuple

import numpy as np

from nml import cli
from probes.reporting.averages import Score, noise_key
from probes.reporting.claims import Margins, judged
from probes.reporting.inference import LEVEL
from probes.reporting.paired import Asked, compare
from probes.reporting.questions import questions

HEADS = ("lp", "mlp", "nmtune")
LEVELS = (0.0, 0.05, 0.1, 0.2, 0.3)
RUN, WHIM, FIT = 0.02, 0.005, 0.003  # deviations: of a run, of a head on a run, of a fit


class Design(NamedTuple):
    """A study: noise levels, pre-training runs a level, tasks, and seeds of each head."""

    levels: tuple[float, ...]
    runs: int
    tasks: int
    seeds: int = 3


def folder(design: Design, luck: np.random.Generator, gain: float = 0.0) -> list[Score]:
    """Return the scores of a study in which noise does nothing, and nmtune gains ``gain``."""
    found = []
    for level in design.levels:
        for run in range(design.runs):
            base = luck.normal(0.7, RUN)
            suits = dict(zip(HEADS, (0.0, *luck.normal(0, WHIM, len(HEADS) - 1)), strict=True))
            spectrum = luck.normal(3, 0.1)
            for head in HEADS:
                better = base + suits[head] + gain * (head == "nmtune")
                fits = luck.normal(better, FIT, (2, design.tasks, design.seeds))
                found += [
                    Score(
                        family="study",
                        encoder=f"study-n{round(100 * level):02d}-seed{run}",
                        encoder_hash=f"{level} {run}",
                        noise=level,
                        head=head,
                        task=f"task{task}",
                        domain=domain,
                        fraction=1.0,
                        repetition=f"seed{run}",
                        seed=seed,
                        downstream_noise=0.0,
                        metric=float(fits[place, task, seed]),
                        sve=spectrum,
                        lsvr=spectrum,
                        head_sve=spectrum,
                        head_lsvr=spectrum,
                        datasets=("test",),
                    )
                    for place, domain in enumerate(("id", "ood"))
                    for task in range(design.tasks)
                    for seed in range(design.seeds)
                ]
    return found


class Judgements(NamedTuple):
    """What the report does with the comparisons of a study: each level, then all; mlp in and out, then
    nmtune.

    Attributes:
        marked: Whether each is set in bold.
        clear: Whether each has a 95 % interval that leaves out zero.
    """

    marked: list[bool]
    clear: list[bool]


def judgements(found: list[Score]) -> Judgements:
    """Compare the heads as the report's table does."""
    levels = sorted({noise_key(score) for score in found})
    groups = [[score for score in found if noise_key(score) == level] for level in levels]
    groups += [found] if len(levels) > 1 else []
    asked = [
        Asked([score for score in group if score.domain == domain], head)
        for group in groups
        for head in HEADS[1:]
        for domain in ("id", "ood")
    ]
    made = [one for one in compare(asked) if one]
    return Judgements(
        [one.marked for one in made], [one.found.p is not None and one.found.p < LEVEL for one in made]
    )


def verdicts(found: list[Score]) -> list[str]:
    """Return what the report says of the claims that these scores say anything of."""
    said = []
    for claim in judged([("study", one) for one in questions(found, [], HEADS)], Margins()):
        # Of a study without effects "no effect" is the truth, and the other sign an error.
        turned = claim.verdict == "contradicted" and claim.p_holm is not None and claim.p_holm < LEVEL
        said.append("wrong sign" if turned else claim.verdict)
    return [verdict for verdict in said if verdict != "too few runs"]


def main() -> None:
    parser = cli.Parser("python benchmarks/report_errors.py", "False marks and power of the report.")
    parser.add_argument(
        "--folders", type=int, default=250, help="studies a design; there are four without effects"
    )
    options = parser.parse_args()
    # statsmodels collects garbage with every adjustment: what is there already need not be looked through.
    gc.freeze()
    for design in (Design(LEVELS, runs, tasks) for runs in (2, 3) for tasks in (3, 14)):
        luck, begun = np.random.default_rng(0), time.process_time()
        made, said = [], Counter[str]()
        for _ in range(options.folders):
            found = folder(design, luck)
            made.append(judgements(found))
            said.update(verdicts(found))
        marked, clear = (np.array(one) for one in zip(*made, strict=True))
        print(
            f"no effect, {design.runs} runs a level, {design.tasks} tasks: {100 * marked.mean():.2f} % of "
            f"the comparisons marked, any in {100 * marked.any(axis=1).mean():.1f} % of folders; intervals "
            f"without zero {100 * clear.mean():.1f} %; claims: "
            + ", ".join(
                f"{verdict} {100 * count / said.total():.2f} %" for verdict, count in said.most_common()
            )
            + f"; {time.process_time() - begun:.0f} s of CPU time",
            flush=True,
        )
    for design in (Design((0.2,), 8, tasks) for tasks in (3, 14)):
        luck, begun = np.random.default_rng(0), time.process_time()
        marked = np.array([judgements(folder(design, luck, 2 * WHIM)).marked for _ in range(options.folders)])
        print(
            f"a gain of twice the deviation between runs, 8 runs, {design.tasks} tasks: marked in "
            f"{100 * marked[:, 2:].mean():.1f} % (power); beside it, no effect marked in "
            f"{100 * marked[:, :2].mean():.1f} %; {time.process_time() - begun:.0f} s of CPU time",
            flush=True,
        )


if __name__ == "__main__":
    cli.run(main)
