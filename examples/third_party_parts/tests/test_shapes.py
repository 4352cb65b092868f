"""Hold every part to its contract with the project's own kits, one test a promise."""

import probes.encoders.conformance as encoders
import probes.tasks.conformance as tasks
import pytest
import shards.noise.conformance as noise
import shards.sources.conformance as sources
from shapes_noise import Opposite
from shapes_source import Shapes
from shapes_task import SHAPES
from thumbnail_encoder import open_thumbnail

KITS = [
    (noise.CHECKS, noise.Subject(Opposite)),
    (sources.CHECKS, sources.Subject(Shapes, "shapes")),
    (tasks.CHECKS, tasks.Subject(SHAPES, "shapes-small")),
    (encoders.CHECKS, encoders.Subject(open_thumbnail, "thumbnail:8", other="thumbnail:4")),
]


@pytest.mark.parametrize(
    ("check", "subject"), [(check, subject) for checks, subject in KITS for check in checks.values()]
)
def test_every_part_keeps_its_promises(check, subject):
    check(subject)
