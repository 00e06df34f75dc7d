"""Files that are, or are not, images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from octnas.data.decode import BrokenImageError, pixel_digest, read_rgb

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)


def test_grayscale_and_palette_and_alpha_become_rgb(tmp_path: Path) -> None:
    picture = Image.fromarray(PIXELS)
    for mode in ("L", "P", "RGBA", "LA", "1"):
        picture.convert(mode).save(tmp_path / f"{mode}.png")
        found = read_rgb(tmp_path / f"{mode}.png")
        assert (found.mode, found.size) == ("RGB", (10, 12))
        expected = picture.convert(mode).convert("RGB")
        assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_a_palette_with_transparency(tmp_path: Path) -> None:
    """Pillow warns of it; warnings are errors here."""
    picture = Image.fromarray(PIXELS).convert("P")
    picture.save(tmp_path / "p.png", transparency=bytes(range(256)))
    assert np.asarray(read_rgb(tmp_path / "p.png")).std() > 50


def test_cmyk(tmp_path: Path) -> None:
    flat = Image.new("RGB", (16, 16), (200, 30, 60))
    flat.convert("CMYK").save(tmp_path / "c.jpeg", quality=100)
    found = np.asarray(read_rgb(tmp_path / "c.jpeg")).mean((0, 1))
    assert np.allclose(found, (200, 30, 60), atol=4)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.linspace(0, 65535, 120).round().astype(np.uint16).reshape(12, 10)
    Image.fromarray(values).save(tmp_path / f"s.{suffix}")
    found = np.asarray(read_rgb(tmp_path / f"s.{suffix}"))
    assert np.array_equal(found[..., 0], (values / 257).round())


def test_a_wrong_extension_does_not_matter(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "x.JPEG", format="PNG")
    assert np.array_equal(np.asarray(read_rgb(tmp_path / "x.JPEG")), PIXELS)


def broken(path: Path) -> str:
    with pytest.raises(BrokenImageError) as caught:
        read_rgb(path)
    return str(caught.value)


def test_what_is_no_image_is_refused_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "x.jpeg"
    path.write_bytes(b"")
    assert broken(path) == "no image, or of an unknown format"
    path.write_text("not an image")
    assert broken(path) == "no image, or of an unknown format"
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    assert broken(path).startswith("FileNotFoundError")
    Image.fromarray(PIXELS[..., 0].astype(np.float32)).save(tmp_path / "f.tiff")
    assert "floating-point" in broken(tmp_path / "f.tiff")


@pytest.mark.parametrize("suffix", ["jpeg", "png", "bmp", "webp"])
def test_a_file_that_is_cut_off(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(np.repeat(np.repeat(PIXELS, 8, 0), 8, 1)).save(path)
    whole = path.read_bytes()
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        assert broken(path)


def test_a_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also between Pillow's warning and its own refusal, at twice the size."""
    Image.fromarray(PIXELS).save(tmp_path / "x.png")
    for limit in (119, 50):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert "decompression bomb" in broken(tmp_path / "x.png")


def test_a_digest_is_of_pixels_and_size(tmp_path: Path) -> None:
    picture = Image.fromarray(PIXELS)
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "b.bmp")
    digests = {pixel_digest(read_rgb(tmp_path / name)) for name in ("a.png", "b.bmp")}
    assert len(digests) == 1
    other = PIXELS.copy()
    other[3, 4, 1] ^= 1
    for changed in (other, PIXELS.reshape(10, 12, 3)):
        assert pixel_digest(Image.fromarray(changed)) not in digests
