"""An encoder from outside: the grey levels of a small copy of the image, ``thumbnail:8`` for 8 x 8."""

import numpy as np
from nml.errors import UserError
from PIL import Image
from probes.encoders import EncoderInfo
from probes.spec import check_options


class Thumbnail:
    batch_size = 256

    def __init__(self, name, size):
        self.size = size
        # All that the features follow from; of a trained model, the hash of its weights above all.
        identity = {"library": "nml-shapes/1", "size": size}
        self.info = EncoderInfo(name=name, kind="thumbnail", modality="image", identity=identity)

    def prepare(self, content):
        if not isinstance(content, Image.Image):
            raise UserError(f"encoder {self.info.name} reads images", mend="choose a task of images")
        small = content.convert("L").resize((self.size, self.size), Image.Resampling.BOX)
        return np.asarray(small, np.float32).ravel() / 255

    def encode(self, prepared):
        return np.stack(prepared)


def open_thumbnail(spec, settings):
    check_options(spec, (), where="--encoder")
    size = spec.arguments[0] if spec.arguments else "8"
    if not size.isdecimal() or int(size) < 1:
        raise UserError(f"--encoder {spec.text}: no size", possible="thumbnail:8 and the like")
    return Thumbnail(spec.text, int(size))
