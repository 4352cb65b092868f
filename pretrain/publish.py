"""``python -m pretrain.publish``: runs in the layout of the Hugging Face Hub, for others to use.

::

    OUT/
      README.md              a ladder's card: its runs in a table (of several runs)
      NAME/                  a repository of the Hub, one a run
        README.md            the model card
        config.json          timm's; open_clip_config.json for CLIP
        model.safetensors    and open_clip_model.safetensors for CLIP
        meta.json            what probes read: recipe, realised noise, hash of the manifest
        curves.png
        steps/step-00000040/ the same files of an earlier checkpoint
      noise-SET/             a data set of the Hub, one a set of shards: the labels, no image
        README.md            the card
        croissant.json       what the columns are, as Croissant 1.0
        LEVEL.parquet

Nothing is uploaded: ``hf upload ME/NAME OUT/NAME`` does that.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nml import cli, layout
from nml.errors import UserError
from nml.files import fsync_folder, link_or_copy, make_folder, sync_tree, write_json
from nml.locking import made_beside
from nml.signatures import sign, signer
from nml.untrusted import read_json, shown
from pretrain.checkpoints import newest_checkpoint, verify

OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
STEPS = "steps"
# What timm says of an architecture is of the weights that it has for it.
_OF_OTHER_WEIGHTS = (
    *("tag", "description", "origin_url", "paper_ids", "paper_name", "notes", "license"),
    *("test_input_size", "test_crop_pct", "test_pool_size"),
)
# Arguments of open_clip.create_model, and where in a model's configuration each goes.
_FORCED = {
    "force_image_size": ("vision_cfg", "image_size"),
    "force_patch_dropout": ("vision_cfg", "patch_dropout"),
    "force_context_length": ("text_cfg", "context_length"),
    "force_quick_gelu": ("", "quick_gelu"),
    "force_custom_text": ("", "custom_text"),
}
_HUB_NAME = re.compile(r"(?!.*(--|\.\.|\.git$))\w([\w.-]{0,94}\w)?", re.ASCII)
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
EPILOG = """examples:
  python -m pretrain.publish runs/quickstart-n20-seed0 --out hub
  python -m probes.results export results --where head=lp --out probes.csv
  python -m pretrain.publish runs/quickstart-n* --out hub --license apache-2.0 --results probes.csv
  hf upload ME/quickstart-n20-seed0 hub/quickstart-n20-seed0"""


class Published(NamedTuple):
    """A run that was put into the layout.

    Attributes:
        name: Name of the run, and of its folder.
        meta: Its ``meta.json`` as published.
        run: The run folder.
        steps: Steps of the earlier checkpoints beside it, oldest first.
        step: Step of its own weights.
        set_path: Where the set of its training was.
        done: Whether it had done its last step.
    """

    name: str
    meta: dict[str, Any]
    run: Path
    steps: tuple[int, ...]
    step: int
    set_path: str
    done: bool


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = cli.Parser(
        "python -m pretrain.publish",
        "Put runs into the layout of the Hugging Face Hub: weights that timm and open_clip load, "
        "cards,\nand the noise of their sets as a data set without images. Nothing is uploaded.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("runs", type=str, nargs="+", help="run folders; several make a ladder with a card of its own")
    add("--out", type=str, required=True, help="folder to write; it must not exist")
    add("--license", type=str, default=None, help="licence, as the Hub names it: apache-2.0, cc-by-4.0, ...")
    add("--results", type=str, default=None, help="CSV of probes.results export: accuracies for the cards")
    add("--no-steps", action="store_true", help="leave out earlier checkpoints that the runs have kept")
    add("--sign", type=str, default=None, help="private key in PEM: sign weights and meta.json of each run")
    options = parser.parse_args(argv)
    if options.sign:
        # Before anything is written.
        signer(options.sign)
    target = publish_runs(
        [Path(run) for run in options.runs],
        Path(options.out),
        license_name=options.license,
        results=options.results,
        steps=not options.no_steps,
        key=options.sign,
    )
    print(f"published: {target}")


def publish_runs(
    runs: Sequence[Path],
    out: Path,
    *,
    license_name: str | None = None,
    results: str | None = None,
    steps: bool = True,
    key: str | None = None,
) -> Path:
    """Write the layout, whole or not at all, and return its folder.

    Args:
        runs: Run folders, of different names.
        out: Folder to write.
        license_name: Licence for the cards; None says that none was named.
        results: CSV that ``probes.results export`` wrote; None for no accuracies.
        steps: Whether earlier checkpoints that were kept come too.
        key: Private key to sign with.

    Raises:
        UserError: If a run has no complete checkpoint, two runs have one name, ``out`` exists or another
            process makes it, or the licence is no name of one.
    """
    from pretrain.cards import probes_of, write_ladder_card, write_model_card
    from pretrain.published_noise import write_noise

    if license_name is not None and not _LICENCE.fullmatch(license_name):
        raise UserError(
            f"--license {shown(license_name)}: no name that the Hub gives a licence",
            possible="apache-2.0, mit, cc-by-4.0, other, ...",
        )
    if out.exists():
        raise UserError(f"--out {out}: exists", mend="name a folder that does not exist")
    names = [run.resolve().name for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{name}: two runs of this name", mend="publish them into folders of their own")
    rows = probes_of(results) if results else {}
    with made_beside(out) as temporary:
        make_folder(temporary)
        done = [_publish(run, temporary / name, steps) for run, name in zip(runs, names, strict=True)]
        noise = write_noise(done, temporary, license_name)
        for one in done:
            folder = temporary / one.name
            if not _HUB_NAME.fullmatch(one.name):
                print(
                    f"{shown(one.name)}: no name that the Hub takes; upload it under another", file=sys.stderr
                )
            if not one.done:
                print(f"{one.name} had not ended: published as it is at step {one.step:,}", file=sys.stderr)
            if results and one.name not in rows:
                print(f"without accuracies of {one.name}: {results} has none on all data", file=sys.stderr)
            write_model_card(one, folder, licence=license_name, noise=noise, probes=rows.get(one.name, []))
            if key:
                sign(folder, layout.SIGNED, layout.SIGNATURE, key)
        if len(done) > 1:
            write_ladder_card(done, temporary, noise=noise, probes=rows)
        sync_tree(temporary)
        temporary.rename(out)
    fsync_folder(out.parent)
    return out


def _publish(run: Path, folder: Path, steps: bool) -> Published:
    """Write a run's weights, its curves and those of its earlier checkpoints."""
    newest = newest_checkpoint(run)
    if newest is None:
        raise UserError(
            f"{run}: has no complete checkpoint", possible="a run folder of pretrain.run, such as runs/NAME"
        )
    meta = _write_weights(newest.export, folder)
    earlier = [step for step in layout.kept_steps(run) if step < newest.step] if steps else []
    for step in earlier:
        name = layout.step_name(step)
        _write_weights(verify(run / layout.CHECKPOINTS / name).export, folder / STEPS / name)
    if (run / layout.METRICS).exists():
        from nml.curves import read_curves
        from pretrain.curves import write_curves

        write_curves([read_curves(run)], [folder / f"{layout.CURVES}.png"])
    set_path = read_json(newest.export / layout.META)["noise"]["set_path"]
    return Published(folder.name, meta, run, tuple(earlier), newest.step, set_path, layout.is_done(run))


def _write_weights(export: Path, folder: Path) -> dict[str, Any]:
    """Write one encoder as timm or open_clip load it, and as probes do; return its ``meta.json``."""
    make_folder(folder)
    meta: dict[str, Any] = read_json(export / layout.META)
    # Where a set or weights lay is the publisher's own business; what they were, their hashes say.
    for part, name in (("noise", "set_path"), ("init", "file")):
        if meta.get(part):
            meta[part] = {**meta[part], name: Path(meta[part][name]).name}
    write_json(folder / layout.META, meta)
    link_or_copy(export / layout.WEIGHTS, folder / layout.WEIGHTS)
    if meta["library"] == "open_clip":
        link_or_copy(export / layout.WEIGHTS, folder / OPEN_CLIP_WEIGHTS)
        write_json(folder / "open_clip_config.json", _open_clip_config(meta))
    else:
        _write_timm_config(meta, folder / "config.json")
    return meta


def _open_clip_config(meta: dict[str, Any]) -> dict[str, Any]:
    import open_clip

    shape, arguments = meta["preprocessing"], dict(meta["model_kwargs"])
    model = open_clip.get_model_config(meta["architecture"])
    if model is None:
        raise UserError(
            f"{meta['architecture']}: open_clip here does not know this architecture",
            mend="use the version of open_clip that the run was trained with",
        )
    # What its factory turns into the configuration of the model before it builds it.
    for name, (part, field) in _FORCED.items():
        if arguments.get(name):
            (model[part] if part else model)[field] = arguments[name]
        arguments.pop(name, None)
    return {
        "model_cfg": {**model, **arguments},
        "preprocess_cfg": {
            "mean": shape["mean"],
            "std": shape["std"],
            "interpolation": shape["interpolation"],
            "resize_mode": "shortest",
        },
    }


def _write_timm_config(meta: dict[str, Any], path: Path) -> None:
    import timm
    from timm.models._hub import save_config_for_hf

    shape = meta["preprocessing"]
    model = timm.create_model(meta["architecture"], **meta["model_kwargs"])
    about: dict[str, Any] = {
        "pretrained_cfg": {
            name: shape[name] for name in ("input_size", "mean", "std", "interpolation", "crop_pct")
        },
    }
    # What was trained without labels gives features, which no class is a name of.
    if len(meta["classes"] or ()) == model.num_classes:
        about["label_names"] = meta["classes"]
    arguments = {name: value for name, value in meta["model_kwargs"].items() if name != "num_classes"}
    save_config_for_hf(model, str(path), model_config=about, model_args=arguments)
    config = read_json(path)
    for name in _OF_OTHER_WEIGHTS:
        config["pretrained_cfg"].pop(name, None)
    write_json(path, config)


if __name__ == "__main__":
    cli.run(main)
