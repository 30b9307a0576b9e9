"""Encoded images → the pictures that smolagents takes.

In: the bytes of strangers. Out: pictures, read whole and of a bearable size, or ValueError.
"""

import contextvars
import io
import struct
from collections.abc import Sequence

from PIL import Image as PillowImage

from streaming.run_spec import Image

# Opened, a picture takes three to four bytes a pixel; models scale down to about a million.
MAX_PIXELS = 25_000_000
# What Pillow's readers raise for broken files.
UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    PillowImage.DecompressionBombError,
)


def pictures(images: Sequence[Image]) -> list[PillowImage.Image]:
    """Encoded images as the pictures that smolagents takes. Raises ValueError for what is none."""
    opened: list[PillowImage.Image] = []
    for image in images:
        try:
            # In a context of its own: what Pillow warns of is not the run's output.
            picture = contextvars.Context().run(_read_picture, image.data)
        except UNREADABLE:
            raise ValueError(f"an image of type {image.media_type} cannot be read") from None
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"an image has more than {MAX_PIXELS} pixels")
        opened.append(picture)
    return opened


def _read_picture(data: bytes) -> PillowImage.Image:
    """Read whole, or its header alone where it is too large."""
    picture = PillowImage.open(io.BytesIO(data))
    if picture.width * picture.height <= MAX_PIXELS:
        picture.load()
    return picture
