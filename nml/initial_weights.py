"""The weights that a run begins from where they are not fresh: where they lie, and what tells them apart."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from nml import layout
from nml.errors import UserError
from nml.files import sha256_file

# As this project, timm, open_clip and their hub write them.
NAMES = (
    layout.WEIGHTS,
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)


@dataclass(frozen=True)
class InitialWeights:
    """What a run's records say of the weights that it begins from.

    Attributes:
        file: Where they lay.
        sha256: Hash of the file, which tells them from any others; a place does not.
    """

    file: str
    sha256: str

    def as_json(self) -> dict[str, str]:
        """Return what is written down."""
        return asdict(self)


def find_weights(location: str) -> Path:
    """Return the file of weights that ``--init-from`` names.

    Args:
        location: The file; or a folder that holds one of :data:`NAMES`; or a run's, for its export.

    Raises:
        UserError: If there is none.
    """
    place = Path(location).expanduser()
    places = [place] if place.is_file() else [place / name for name in NAMES]
    found = next((file for file in (*places, place / layout.EXPORT / layout.WEIGHTS) if file.is_file()), None)
    if found is None:
        what = "holds no weights" if place.is_dir() else "no such file or folder"
        raise UserError(
            f"--init-from {location}: {what}",
            possible=f"a file of weights, a run folder, or a folder with one of {', '.join(NAMES)}",
        )
    return found


def describe_weights(location: str) -> InitialWeights:
    """Return what a run's records say of the weights that ``--init-from`` names.

    Raises:
        UserError: If there are none.
    """
    file = find_weights(location)
    return InitialWeights(str(file), sha256_file(file))
