"""Images in tables of somebody else's take no more memory than a multiple of their file."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nml import stored_images
from nml.errors import UserError
from nml.sources import Cell
from nml.stored_images import StoredImages


def test_an_image_that_is_stored_once_for_many_rows_is_read_no_further_than_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": [bytes(100_000)] * 1000}), path, store_schema=False)
    images = StoredImages([Cell(path, "image", 999)])
    assert images[0] == bytes(100_000)
    monkeypatch.setattr(stored_images, "MOST_BYTES", 10_000_000)
    with pytest.raises(UserError, match="row group 0 would be more than 10,000,000 bytes in memory"):
        StoredImages(images.places)[0]
