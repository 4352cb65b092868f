"""``python -m pretrain.export``: take the encoder out of a run or a checkpoint."""

from __future__ import annotations

from pathlib import Path

from nml import cli, layout
from nml.errors import UserError
from nml.files import fsync_folder
from nml.layout import step_folders
from nml.locking import made_beside
from nml.signatures import sign, signer
from pretrain.checkpoints import newest_checkpoint, verify
from pretrain.encoder_files import publish

EPILOG = """examples:
  python -m pretrain.export runs/quickstart-n20-seed0
  python -m pretrain.export runs/quickstart-n20-seed0 --step 40 --out encoders/at-40
  python -m pretrain.export runs/quickstart-n20-seed0 --out encoders/mine --sign key.pem"""


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = cli.Parser(
        "python -m pretrain.export",
        "Copy the encoder of a run's newest checkpoint, or of a given step, out of the run folder.\n"
        "Every file is checked against the hash it was written with.",
        epilog=EPILOG,
    )
    parser.add_argument("run", type=str, help="run folder")
    parser.add_argument("--step", type=int, default=None, help="checkpoint to take; default: the newest")
    parser.add_argument(
        "--out",
        type=str,
        default=None,
        help="folder to write; default: RUN/export, or RUN/export-STEP with --step",
    )
    parser.add_argument(
        "--sign", type=str, default=None, help="private key in PEM: sign what is written (export/model.sig)"
    )
    options = parser.parse_args(argv)
    if options.sign:
        # Before anything is written.
        signer(options.sign)
    target = export_run(Path(options.run), options.step, options.out)
    if options.sign:
        print(f"signature: {sign(target, layout.SIGNED, layout.SIGNATURE, options.sign)}")
    print(f"export: {target}")


def export_run(run: Path, step: int | None, out: str | None) -> Path:
    """Copy an export out of a run and return where it went.

    Raises:
        UserError: If the run or the step is not there, a file is damaged, or ``out`` exists.
    """
    steps = [int(folder.name.removeprefix("step-")) for folder in step_folders(run)]
    if not steps:
        raise UserError(
            f"{run}: has no checkpoints", possible="a run folder of pretrain.run, such as runs/NAME"
        )
    if step is None:
        checkpoint = newest_checkpoint(run)
    elif step in steps:
        checkpoint = verify(run / layout.CHECKPOINTS / layout.step_name(step))
    else:
        raise UserError(f"--step {step}: no such checkpoint", possible=", ".join(map(str, sorted(steps))))
    if checkpoint is None:
        raise UserError(f"{run}: has no complete checkpoint", mend="let pretrain.run reach its next one")
    default = layout.EXPORT if step is None else f"{layout.EXPORT}-{step:08d}"
    target = Path(out) if out else run / default
    if out and target.exists():
        raise UserError(f"--out {out}: exists", mend="name a folder that does not exist")
    if out is None:
        publish(checkpoint.export, target)
        return target
    with made_beside(target) as temporary:
        publish(checkpoint.export, temporary)
        temporary.rename(target)
    fsync_folder(target.parent)
    return target


if __name__ == "__main__":
    cli.run(main)
