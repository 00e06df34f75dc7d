"""Decoding of image files to RGB, with the reason where that fails."""

import math
import warnings
from hashlib import blake2b
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

# Pillow's modes of 16-bit images; it converts the other modes to RGB correctly.
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")

# The largest aspect ratio. Images are resized by their shorter side: to 256 rows, a line of 60,000
# pixels in a file of 200 bytes would take twelve gigabytes.
_LONGEST = 100


class BrokenImageError(Exception):
    """An image that cannot be used; the text is the reason."""


def read_rgb(source: Path | IO[bytes] | Image.Image) -> Image.Image:
    """Decode an image whole, whatever its format and its name; a file is closed.

    Grayscale, palette and CMYK become RGB; 16 bits are scaled to 8; alpha is dropped, and EXIF
    orientation is not applied, as in torchvision.

    Raises:
        BrokenImageError: it is not an image, is truncated, cannot be read, or is a decompression
            bomb: too many pixels for Pillow, or so narrow that resizing would exhaust memory.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns from 90 million pixels and refuses only twice as many.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Damaged metadata does no harm to pixels.
            warnings.simplefilter("ignore", UserWarning)
            if isinstance(source, Image.Image):
                # Pillow looks at the size of what it opens; shards come opened.
                if Image.MAX_IMAGE_PIXELS and math.prod(source.size) > Image.MAX_IMAGE_PIXELS:
                    raise Image.DecompressionBombError
                return _to_rgb(source)
            if isinstance(source, Path) and source.exists() and not source.is_file():
                # Opening a pipe would wait for a writer.
                raise BrokenImageError("not a regular file")
            # Pillow leaves files open where it fails.
            with source.open("rb") if isinstance(source, Path) else source as file:
                return _to_rgb(Image.open(file))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise BrokenImageError(
            f"more than {Image.MAX_IMAGE_PIXELS} pixels: possibly a decompression bomb"
        ) from None
    except UnidentifiedImageError:
        raise BrokenImageError("not an image, or an unsupported format") from None
    except Exception as error:
        # Pillow's decoders raise anything for damaged files.
        raise broken(error) from error


def broken(error: Exception) -> BrokenImageError:
    """The same with its reason in one line."""
    if isinstance(error, BrokenImageError):
        return error
    return BrokenImageError(f"{type(error).__name__}: {' '.join(str(error).split())}")


def _to_rgb(image: Image.Image) -> Image.Image:
    if max(image.size) > _LONGEST * min(image.size):
        raise BrokenImageError(
            f"{image.width}×{image.height} pixels, an aspect ratio above {_LONGEST}: resizing it "
            "would exhaust memory"
        )
    if image.format == "EPS":
        # Pillow would start Ghostscript, which may never end.
        raise BrokenImageError("PostScript is a program, not an image")
    if image.mode in _SIXTEEN_BITS:
        values = np.asarray(image).astype(np.float64) / 257
        if not 0 <= values.min() <= values.max() <= 255:
            raise BrokenImageError("32-bit pixels, whose range is unknown")
        image = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    elif image.mode == "F":
        raise BrokenImageError("floating-point pixels, whose range is unknown")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def pixel_digest(image: Image.Image) -> str:
    """A hash of an image's size and pixels, by which copies under other names are found."""
    state = blake2b(f"{image.mode} {image.size}".encode(), digest_size=16)
    state.update(image.tobytes())
    return state.hexdigest()
