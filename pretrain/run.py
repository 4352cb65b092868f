"""``python -m pretrain.run``: train one encoder, or continue it, or find it done."""

from __future__ import annotations

import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from nml import digits, layout
from nml.errors import UserError
from nml.files import write_bytes, write_json
from nml.locking import held_alone
from nml.run_options import check_extras, check_resume, duration
from pretrain import ending
from pretrain.curves import draw_at_end
from pretrain.options import Options, parse_options
from pretrain.probing import Probing, tell_marked
from pretrain.same_run import (
    check_can_be_written,
    check_same_command,
    check_same_data,
    check_same_run,
    check_same_start,
    describe_data,
    read_done,
)
from pretrain.world import World, decided_by_main, join, leave, world_from_environment

if TYPE_CHECKING:
    from shards.shardset import ShardSet

# What a failed run may take to complete a checkpoint that is nearly written.
SAVE_SECONDS = 3.0


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    started = time.perf_counter()
    options, text = parse_options(argv)
    world = world_from_environment(duration("--timeout", options.timeout))
    check_extras(options)
    check_same_run(options.run_dir, text)
    check_resume(options.run_dir, options.resume)
    probing = Probing(options, world) if options.probe else None
    if probing is None and world.is_main:
        tell_marked(options.run_dir)
    done, status = read_done(options.run_dir), 0
    if done is not None:
        _check_done_on_same_data(options)
        if world.is_main:
            print(f"already done: {done['step']} steps, {done['epochs']} epochs; nothing to do")
            if options.memorisation and not (options.run_dir / layout.MEMORISATION).exists():
                print("--memorisation: it trained without, so nothing was remembered; name another --run-dir")
            if probing is not None:
                with ending.watched(world):
                    status = probing.catch_up()
            if not status:
                _say_where(options)
        return status
    with ending.watched(world) as warden:
        with contextlib.ExitStack() as closing, ending.failing(world, warden):
            join(world, str(options.run_dir))
            closing.push(partial(_leave, world))
            status = train(options, text, world, started, closing, probing)
        if world.is_main and status == 0:
            draw_at_end(options.run_dir)
            # Nobody waits for it: the ranks have parted.
            if probing is not None:
                status = probing.finish()
    if world.is_main and status == 0:
        _say_where(options)
    return status


def _leave(world: World, kind: type[BaseException] | None, *_: object) -> None:
    # Of a group that has failed, some are gone, and to wait for them is to wait for ever.
    if kind is None or world.size == 1:
        leave()


def _end_unless_done(probing: Probing, kind: type[BaseException] | None, *_: object) -> None:
    if kind is not None:
        probing.close()


def _check_done_on_same_data(options: Options) -> None:
    """Compare a finished run with the set that is named, if that is still there."""
    check_same_start(options.run_dir, options.init_from)
    if options.shards is None:
        return
    try:
        shard_set = _open_set(options)
    except UserError:
        return
    check_same_data(options.run_dir, shard_set, options.level)


def _say_where(options: Options) -> None:
    print(f"export: {options.run_dir / layout.EXPORT}")
    print(f"run: {options.run_dir}", flush=True)


def train(
    options: Options,
    text: str,
    world: World,
    started: float,
    closing: contextlib.ExitStack,
    probing: Probing | None = None,
) -> int:
    """Open the data, build everything, and only then touch the run folder.

    Args:
        options: The options.
        text: The same as YAML.
        world: This process, in its group.
        started: When it began, by time.perf_counter().
        closing: Gets what is to be closed at the end, whatever it is.
        probing: Measures the encoder while it trains; None where nobody asked for it.
    """
    from pretrain.assembly import assemble

    check_same_command(world, text)
    decided_by_main(world, lambda: check_can_be_written(options.run_dir))
    if world.is_main and options.shards is None:
        print(digits.NOTICE, flush=True)
    # Rank 0 may have to write the set; the others open what it wrote.
    decided_by_main(world, lambda: _open_set(options) and None)
    shard_set = _open_set(options)
    check_same_data(options.run_dir, shard_set, options.level)
    start = decided_by_main(world, lambda: check_same_start(options.run_dir, options.init_from))
    if probing is not None:
        closing.push(partial(_end_unless_done, probing))
        # It looks at what it is asked for while the network is built.
        decided_by_main(world, probing.start)
    trainer, batches = assemble(options, world, shard_set, started, start, probing)
    if probing is not None:
        decided_by_main(world, probing.wait_ready)
        probing.heed(trainer.stop)
    data = describe_data(shard_set, options.level) | ({"init": start.as_json()} if start else {})
    decided_by_main(world, lambda: _open_run(options, text, data, closing))
    closing.callback(trainer.state.saver.linger, SAVE_SECONDS)
    closing.callback(trainer.recorder.close)
    if world.is_main:
        print(
            f"training in {options.run_dir}: {options.recipe.epochs} epochs of "
            f"{trainer.steps_per_epoch} steps",
            flush=True,
        )
    status = trainer.run(batches)
    if status and probing is not None:
        # What it has not done is left to who continues the run.
        probing.close()
    return status


def _open_run(options: Options, text: str, data: dict[str, Any], stack: contextlib.ExitStack) -> None:
    # Two that train in one folder would each take the other's checkpoints for their own.
    stack.enter_context(held_alone(options.run_dir, busy="another process trains in it"))
    (options.run_dir / layout.LOGS).mkdir(parents=True, exist_ok=True)
    write_bytes(options.run_dir / layout.CONFIG, text.encode())
    write_json(options.run_dir / layout.DATA, data)


def _open_set(options: Options) -> ShardSet:
    """Return the shard set, writing the bundled one where none was named."""
    from shards.bundled import ensure_digits
    from shards.shardset import ShardSet

    if options.shards is None:
        return ensure_digits(options.level)
    shard_set = ShardSet.open(options.shards, signed_by=options.require_signature)
    # A run that has begun goes on with its level, also where another of that ratio was added since.
    shard_set.level(options.noise, strict=not (options.run_dir / layout.DATA).exists())
    return shard_set


if __name__ == "__main__":
    ending.run(main)
