"""``python -m probes.power``: how many pre-training runs an effect needs.

From a results folder, each claim's deviation between ladders as it was measured there; or from a deviation
between runs that is known or feared.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nml.cli import Parser, run
from nml.errors import UserError
from nml.text_table import in_columns

if TYPE_CHECKING:
    from probes.reporting.claims import Claim, Margins
    from probes.reporting.planning import Deviation

UNITS = (2, 3, 5, 10, 20)
EPILOG = """
examples:
  python -m probes.power results/                              # each claim of a pilot study
  python -m probes.power results/ --margin 1                   # ... where whole points matter
  python -m probes.power --deviation 0.6 --levels 5            # nothing measured yet: 0.6 points between runs
  python -m probes.power --deviation 0.6 --shared 0.5 --claims 12
"""


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(
        "python -m probes.power",
        "Plan a study: how many ladders of pre-training runs show a difference in 80 % of studies, or that\n"
        "there is none. A ladder is one run of each noise level, all of one seed.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("results", nargs="?", default=None, type=str | None, help="results folder of a study to plan from")
    add(
        "--deviation",
        default=None,
        type=float,
        help="standard deviation between pre-training runs of one noise level, in points, without results",
    )
    add("--levels", default=1, type=int, help="noise levels above 0 % whose mean is held against 0 %")
    add(
        "--shared",
        default=0.0,
        type=float,
        help="correlation of two runs of one ladder, which share first weights and order",
    )
    add(
        "--claims", default=None, type=int | None, help="claims judged together (default: the results', or 1)"
    )
    add("--margin", default=0.5, type=float, help="smallest difference of accuracy that matters, in points")
    add("--spectrum-margin", default=0.05, type=float, help="the same for SVE and LSVR, in nats")
    add("--json", action="store_true", help="the same as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Print the plan of each claim."""
    arguments = build_parser().parse_args(argv)
    _check(arguments)
    # scipy and matplotlib take a second to import: not before the arguments are known to be right.
    from probes.reporting.claims import Margins
    from probes.reporting.planning import Deviation, of_ladders

    margins = Margins(points=arguments.margin, nats=arguments.spectrum_margin)
    unplanned: list[dict[str, str]] = []
    if arguments.deviation is not None:
        spread = of_ladders(arguments.deviation, arguments.levels, arguments.shared)
        given = Deviation(spread, spread, spread, spread)
        name = (
            f"mean of {arguments.levels} noise levels minus 0 %"
            if arguments.levels > 1
            else "a level minus 0 %"
        )
        plans, unplanned = [_plan(name, "points", None, given, margins, arguments.claims or 1)], []
    else:
        plans, unplanned = _from_results(arguments.results or "results", margins, arguments.claims)
    if arguments.json:
        print(json.dumps({"power": 0.8, "plans": plans, "not_planned": unplanned}, indent=2))
        return
    _show(plans)
    for one in unplanned:
        print(f"{one['claim']}: not planned: {one['reason']}")


def _check(arguments: Any) -> None:
    if arguments.results is not None and arguments.deviation is not None:
        raise UserError(
            f"{arguments.results} and --deviation {arguments.deviation:g}: two sources of one deviation",
            mend="leave one of them out",
        )
    for name, value in (
        ("deviation", arguments.deviation),
        ("margin", arguments.margin),
        ("spectrum-margin", arguments.spectrum_margin),
    ):
        if value is not None and not value > 0:
            raise UserError(f"--{name} {value:g}", possible="a number above 0")
    for name, value in (("levels", arguments.levels), ("claims", arguments.claims)):
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}", possible="a whole number from 1 on")
    if not 0 <= arguments.shared < 1:
        raise UserError(f"--shared {arguments.shared:g}", possible="a number from 0 on and below 1")
    if arguments.deviation is None and (arguments.levels, arguments.shared) != (1, 0.0):
        raise UserError(
            "--levels and --shared: results tell them by themselves",
            mend="leave them out, or name --deviation instead of a results folder",
        )


def _from_results(
    folder: str, margins: Margins, together: int | None
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    from probes.reporting.claims import claims
    from probes.reporting.inference import EQUAL
    from probes.reporting.planning import deviation
    from probes.reporting.selection import select
    from probes.reporting.study import Study
    from probes.results import read_rows

    found = claims(Study(select(read_rows(folder))), margins)
    count = together or max(1, sum(claim.p_holm is not None for claim in found))
    plans: list[dict[str, Any]] = []
    unplanned: list[dict[str, str]] = []
    several = len({claim.encoders for claim in found}) > 1
    for claim in found:
        name = f"{claim.name} ({claim.encoders})" if several else claim.name
        values = claim.values
        if len(values) < 2 or max(values) - min(values) < EQUAL:
            unplanned.append({"claim": name, "reason": _lacking(claim)})
            continue
        spread = deviation(statistics.stdev(values), len(values))
        plans.append(_plan(name, claim.unit, len(values), spread, margins, count))
    return plans, unplanned


def _lacking(claim: Claim) -> str:
    if claim.reason and claim.verdict == "too few runs":
        return claim.reason
    if claim.runs >= 2 and not claim.values:
        return "its levels are two groups of runs; name runs RECIPE-LEVEL-seedN, so that they make ladders"
    if len(claim.values) > 1:
        return "its runs agree to the last digit, which tells no deviation"
    return "one run tells no deviation"


def _plan(
    name: str, unit: str, measured: int | None, spread: Deviation, margins: Margins, claims: int
) -> dict[str, Any]:
    from probes.reporting.planning import shown_by, units_to_rule_out, units_to_show

    margin = margins.points if unit == "points" else margins.nats
    return {
        "claim": name,
        "unit": unit,
        "measured_on": measured,
        "deviation": spread.value,
        "deviation_low": spread.low,
        "deviation_high": spread.high,
        "deviation_cautious": spread.cautious,
        "claims": claims,
        "shown_by": {str(units): shown_by(units, spread.value) for units in UNITS},
        "margin": margin,
        "to_show": units_to_show(margin, spread.value),
        "to_show_among_claims": units_to_show(margin, spread.value, claims),
        "to_show_cautious": units_to_show(margin, spread.cautious, claims),
        "to_rule_out": units_to_rule_out(margin, spread.value),
    }


def _show(plans: Sequence[dict[str, Any]]) -> None:
    if not plans:
        return
    header = ["claim", "unit", "from", "deviation (95 %)"]
    header += [f"shown by {units}" for units in UNITS]
    header += ["margin", "to show it", "of all claims", "cautious", "to rule it out"]
    print("\n".join(in_columns([header, *map(_cells, plans)], text_columns=2)))
    print(
        "\nLadders (where heads are compared: runs) for 80 % power at 5 %.\n"
        "shown by N: the smallest true difference that N of them show, judged alone\n"
        "to show it: how many show a difference of the margin, judged alone\n"
        f"of all claims: the same as the first of {plans[0]['claims']} under Holm's adjustment\n"
        "cautious: the same with the upper 80 % bound of the deviation; plan with this one\n"
        "to rule it out: how many show, by test, that a difference of zero is within the margin"
    )


def _cells(plan: dict[str, Any]) -> list[str]:
    digits = 2 if plan["unit"] == "points" else 3
    spread = f"{plan['deviation']:.{digits}f}"
    if plan["measured_on"] is not None:
        spread += f" ({plan['deviation_low']:.{digits}f} to {plan['deviation_high']:.{digits}f})"
    return [
        plan["claim"],
        plan["unit"],
        "given" if plan["measured_on"] is None else str(plan["measured_on"]),
        spread,
        *(f"{plan['shown_by'][str(units)]:.{digits}f}" for units in UNITS),
        f"{plan['margin']:g}",
        *(
            "> 10,000" if plan[field] is None else str(plan[field])
            for field in ("to_show", "to_show_among_claims", "to_show_cautious", "to_rule_out")
        ),
    ]


if __name__ == "__main__":
    run(main)
