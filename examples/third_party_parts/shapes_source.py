"""A source from outside: discs, squares and crosses, drawn when they are read."""

import io

from nml.errors import UserError
from nml.sources import Example
from PIL import Image, ImageDraw

CLASSES = ("disc", "square", "cross")
SPLITS = {"train": 0, "test": 1}
COUNT = 150


def draw(split, number):
    """Return one shape, 32 x 32 grey pixels; place and size follow from the split and the number alone."""
    image = Image.new("L", (32, 32), number % 40)
    x, y, size = 4 + number * 7 % 12, 4 + number * 5 % 11, 8 + (number // 3 + SPLITS[split]) % 8
    box = (x, y, x + size, y + size)
    pen = ImageDraw.Draw(image)
    ink = 255 - 2 * (number % 30) - SPLITS[split]
    if CLASSES[number % 3] == "disc":
        pen.ellipse(box, fill=ink)
    elif CLASSES[number % 3] == "square":
        pen.rectangle(box, fill=ink)
    else:
        pen.line((x, y, x + size, y + size), fill=ink, width=3)
        pen.line((x, y + size, x + size, y), fill=ink, width=3)
    return image


class Shapes:
    """``shapes``, or ``shapes:test``; as a task, ``shapes:train,test``."""

    kind = "class"
    classes = CLASSES
    parent = None

    def __init__(self, spec):
        spec.refuse_columns()
        self.split = spec.argument or spec.split or spec.usual_split
        if self.split not in SPLITS:
            raise UserError(f"{spec.shown}: no split {self.split!r}", possible=", ".join(SPLITS))
        self.held_out = self.split != "train"

    def __iter__(self):
        for number in range(COUNT):
            file = io.BytesIO()
            draw(self.split, number).save(file, format="PNG", compress_level=0)
            yield Example(f"{self.split}/{number:03d}.png", number % 3, file.getvalue())
