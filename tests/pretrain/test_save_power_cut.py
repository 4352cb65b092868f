"""A run goes on from a whole checkpoint after a power cut at any moment of saving one after another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nml.recipe import Checkpoints
from pretrain.checkpoints import Checkpoint, Saver, recover
from pretrain.engines import Engine
from tests.power_cut import Recorder
from tests.pretrain.small_engines import make, train

pytestmark = pytest.mark.usefixtures("process_group")


def weights(engine: Engine) -> dict[str, list[float]]:
    return {name: value.flatten().tolist() for name, value in engine.weights().items()}


def save(engine: Engine, saver: Saver, step: int) -> None:
    record = {"step": step, "world_size": 1}
    shared, own = {"counted": torch.tensor([float(step)])}, {"mine": torch.tensor([float(-step)])}
    saver.start(
        engine, step=step, record=record, shared=shared, own=own, export=(engine.weights(), {"step": step})
    )
    saver.wait()


def load(found: Checkpoint) -> dict[str, list[float]]:
    """Return the weights that a run resumes with."""
    engine = make("ddp")
    shared, own = {"counted": torch.zeros(1)}, {"mine": torch.zeros(1)}
    engine.load(found.state, shared, own, world_size=1)
    assert (shared["counted"].item(), own["mine"].item()) == (found.step, -found.step)
    return weights(engine)


def test_a_run_resumes_from_the_newest_whole_checkpoint_whenever_the_power_is_cut(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    engine = make("ddp")
    saver = Saver(disk / "run", Checkpoints(keep_last=1))
    expected, told = {}, {}
    with Recorder(disk).on() as recorder:
        for step in (1, 2):
            train(engine, range(step, step + 1))
            expected[step] = weights(engine)
            save(engine, saver, step)
            told[step] = len(recorder.moments)
            # What was told saved is there, whatever happens next.
            now = recorder.final().lay(tmp_path / "now") / "run"
            # Without a resumed run to mend it: there may be none.
            assert (now / "export" / "meta.json").exists()
            assert load_file(now / "export" / "model.safetensors").keys() == engine.weights().keys()
            found = recover(now)
            assert found is not None
            assert (found.step, load(found)) == (step, expected[step])
    states = list(recorder.states())
    assert len(states) > 30
    loaded: dict[bytes, dict[str, list[float]]] = {}
    for state in states:
        state.lay(disk)
        found = recover(disk / "run")
        least = max((step for step, number in told.items() if number <= state.number), default=0)
        assert (found.step if found else 0) >= least, f"step {least} is lost: {state.name}"
        if found:
            # Every file has been compared with the marker: equal markers are equal weights.
            marker = (found.folder / "COMPLETE.json").read_bytes()
            if marker not in loaded:
                loaded[marker] = load(found)
            assert loaded[marker] == expected[found.step], state.name
            assert load_file(disk / "run" / "export" / "model.safetensors").keys() == expected[1].keys()
            assert f'"step": {found.step}' in (disk / "run" / "export" / "meta.json").read_text(), state.name
