"""The page of what a run memorised: one HTML file that needs no network; every text in it is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from nml import layout
from nml.curves import metrics_lines
from nml.errors import UserError
from nml.levels import CLEAN_LEVEL
from nml.palette import ROLES, SETTINGS, Role, rendered
from pretrain.memorisation import Measure, set_of, summary

if TYPE_CHECKING:
    from shards.shardset import ShardSet

SIDE = 96
_KEPT, _FLIPPED, _OTHER, _MUTED = (ROLES[role].light for role in ("c0", "c1", "c2", "muted"))
_BINS = 40
_ROLES = ("surface", "ink", "muted")
_STYLE = """
body { margin: 0 auto; max-width: 68rem; padding: 2rem 1rem 4rem;
  font: 1rem/1.5 system-ui, "DejaVu Sans", sans-serif;
  background: var(--surface); color: var(--ink); }
img.plot { width: 100%; background: #fff; }
pre { overflow-x: auto; }
.samples { display: flex; flex-wrap: wrap; gap: .8rem; }
figure { margin: 0; width: 8.5rem; font-size: .8rem; overflow-wrap: anywhere; }
figure img { width: 100%; image-rendering: pixelated; }
figcaption, .note { color: var(--muted); }
"""


def page(
    run: Path,
    rows: pa.Table,
    found: Sequence[Measure],
    lines: Sequence[dict[str, Any]],
    *,
    pictures: int,
) -> str:
    """Return the page.

    Args:
        run: The run folder.
        rows: Its samples, see :data:`pretrain.memorised.SCHEMA`.
        found: The measures of them.
        lines: The lines of its metrics on noise.
        pictures: Samples of each kind to show.
    """
    name = escape(run.resolve().name)
    plot = base64.b64encode(rendered(draw(run, rows, found, lines), "svg")).decode()
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{name}: memorisation</title><style>{_colours()}{_STYLE}</style></head><body>",
            f"<h1>{name}: what was memorised</h1>",
            f"<pre>{escape(chr(10).join(summary(rows, list(found))))}</pre>",
            f'<img class="plot" alt="Curves, distributions and ROC" src="data:image/svg+xml;base64,{plot}">',
            '<p class="note">Learnt: predicted as its given class at least once. Forgotten: predicted so one '
            "time and not the next (Toneva et al. 2019). Margin: score of the given class minus the largest "
            "other one, the mean over all presentations (AUM, Pleiss et al. 2020).</p>",
            *_pictures(run, rows, pictures),
            "</body></html>",
        ]
    )


def _colours() -> str:
    """Return the colours of the project's pages, in both themes, as variables of CSS."""
    light, dark = (
        " ".join(f"--{role}: {ROLES[role][theme]};" for role in _ROLES) for theme in range(len(Role._fields))
    )
    return f":root {{ {light} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"


def draw(run: Path, rows: pa.Table, found: Sequence[Measure], lines: Sequence[dict[str, Any]]) -> Canvas:
    """Return curves over epochs, both distributions and the ROC curves as one picture."""
    with mpl.rc_context(SETTINGS):
        canvas = Canvas(figsize=(11, 7.6), layout="constrained")
        axes = canvas.subplots(2, 2)
        _draw_epochs(axes[0, 0], run, lines)
        flipped = rows["flipped"].to_numpy()
        _draw_histogram(axes[0, 1], "Margin (AUM)", rows["margin"].to_numpy(), flipped)
        learnt = rows["learnt"].fill_null(0).to_numpy()
        _draw_histogram(axes[1, 0], "Epoch first learnt (0: never)", learnt, flipped)
        _draw_roc(axes[1, 1], found, flipped)
        return canvas


def _draw_epochs(axes: Axes, run: Path, lines: Sequence[dict[str, Any]]) -> None:
    axes.set_title("Share of samples (%)")
    axes.set_xlabel("Epoch")
    curves = [
        ("kept, predicted right", "kept", "accuracy", _KEPT, "-"),
        ("flipped, predicted as given", "flipped", "given", _FLIPPED, "-"),
        ("flipped, predicted right", "flipped", "true", _OTHER, "-"),
        ("kept, own caption first", "kept", "true_first", _KEPT, "-"),
        ("flipped, true caption first", "flipped", "true_first", _OTHER, "-"),
        ("flipped, nearer to the given one", "flipped", "given_nearer", _FLIPPED, "-"),
    ]
    for label, group, name, colour, dashes in curves:
        values = [
            (line["epoch"], 100 * line[group][name]) for line in lines if name in (line.get(group) or {})
        ]
        if values:
            axes.plot(*zip(*values, strict=True), color=colour, linestyle=dashes, label=label)
    epochs = {line["step"]: line["epoch"] for line in lines}
    checked = [
        (epochs[line["step"]], 100 * line["top1"])
        for line in metrics_lines(run / layout.METRICS)
        if line.get("event") == "validation" and line["step"] in epochs
    ]
    if checked:
        axes.plot(*zip(*checked, strict=True), color=_MUTED, linestyle="--", label="validation, top-1")
    if axes.lines:
        axes.legend(frameon=False, fontsize=8)


def _draw_histogram(axes: Axes, title: str, values: Any, flipped: Any) -> None:
    axes.set_title(title)
    axes.set_ylabel("Share of its group (%)")
    finite = values[np.isfinite(values)]
    bins = np.histogram_bin_edges(finite, bins=_BINS) if len(finite) else np.array([0.0, 1.0])
    for name, group, colour in (("kept", ~flipped, _KEPT), ("flipped", flipped, _FLIPPED)):
        if group.any():
            weights = np.full(int(group.sum()), 100 / group.sum())
            axes.hist(
                values[group], bins=bins.tolist(), weights=weights, color=colour, alpha=0.55, label=name
            )
    axes.legend(frameon=False)


def _draw_roc(axes: Axes, found: Sequence[Measure], flipped: Any) -> None:
    axes.set_title("Finding flipped labels (ROC)")
    axes.set_xlabel("Kept labels taken for flipped (%)")
    axes.set_ylabel("Flipped labels found (%)")
    axes.plot([0, 100], [0, 100], color=_MUTED, linestyle=":")
    if not flipped.any() or flipped.all():
        return
    for number, measure in enumerate(found):
        order = np.argsort(measure.values, kind="stable")
        ends = np.flatnonzero(np.r_[np.diff(measure.values[order]) > 0, True])
        hits = 100 * np.cumsum(flipped[order])[ends] / flipped.sum()
        false = 100 * np.cumsum(~flipped[order])[ends] / (~flipped).sum()
        colour = ROLES[f"c{number}"].light
        axes.plot(np.r_[0, false], np.r_[0, hits], color=colour, label=f"{measure.name}: {measure.auc:.3f}")
    axes.legend(frameon=False, fontsize=8)


def _pictures(run: Path, rows: pa.Table, count: int) -> Iterator[str]:
    """Yield the samples that were memorised most and least, as far as the set is still there."""
    if not count:
        return
    from shards.shardset import ShardSet

    try:
        told = set_of(run)
        shard_set = ShardSet.open(told["set_path"])
        if shard_set.fingerprint != told["set_fingerprint"]:
            raise UserError(f"{told['set_path']}: holds another set than the run's")
    except UserError as error:
        yield f'<p class="note">No pictures: {escape(str(error))}</p>'
        return
    flipped, margin = rows["flipped"].to_numpy(), rows["margin"].to_numpy()
    order = np.argsort(margin, kind="stable")
    wrong, right = order[flipped[order]], order[~flipped[order]]
    for title, chosen in (
        ("Flipped, memorised most", wrong[::-1][:count]),
        ("Flipped, memorised least", wrong[:count]),
        ("Kept, learnt least", right[:count]),
    ):
        if len(chosen):
            yield f'<h2>{title}</h2><div class="samples">'
            yield from (_sample(shard_set, told["level"], row) for row in rows.take(chosen).to_pylist())
            yield "</div>"


def _sample(shard_set: ShardSet, level: str, row: dict[str, Any]) -> str:
    from shards.dataset import ShardDataset

    given, clean = (ShardDataset(shard_set, name) for name in (level, CLEAN_LEVEL))
    number = int(row["sample"])
    sample, true = given[number], clean[number].target
    classes = shard_set.classes
    words = [f"given: {_named(sample.target, classes)}"]
    words += [f"true: {_named(true, classes)}"] if true != sample.target else []
    words += [f"predicted: {_named(row['predicted'], classes)}"] if classes else []
    words += [f"margin {row['margin']:.2f}"]
    said = "<br>".join(escape(word) for word in words)
    return (
        f'<figure><img alt="{escape(str(row["key"]), quote=True)}" '
        f'src="data:image/png;base64,{_thumbnail(sample.image)}"><figcaption>{said}</figcaption></figure>'
    )


def _named(target: Any, classes: tuple[str, ...] | None) -> str:
    if classes is None:
        return str(target)
    return classes[target] if 0 <= target < len(classes) else f"class {target}"


def _thumbnail(image: Any) -> str:
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
