"""Files that are, or are not, images."""

import os
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
    assert broken(path) == "not an image, or an unsupported format"
    path.write_text("not an image")
    assert broken(path) == "not an image, or an unsupported format"
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    assert broken(path).startswith("FileNotFoundError")
    Image.fromarray(PIXELS[..., 0].astype(np.float32)).save(tmp_path / "f.tiff")
    assert "floating-point" in broken(tmp_path / "f.tiff")
    Image.fromarray(PIXELS[..., 0].astype(np.int32) * 1000).save(tmp_path / "i.tiff")
    assert "32-bit" in broken(tmp_path / "i.tiff")


def test_no_program_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the name says, PostScript is one, and Pillow would have it run."""
    (tmp_path / "x.jpeg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n"
    )
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("it was run"))
    assert broken(tmp_path / "x.jpeg") == "PostScript is a program, not an image"


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


@pytest.mark.parametrize("size", [(60_000, 1), (1, 101), (203, 2)])
def test_a_line_becomes_a_bomb_when_it_is_resized(tmp_path: Path, size: tuple[int, int]) -> None:
    """Its shorter side is brought to that of the others; refused before it is decoded."""
    Image.new("L", size).save(tmp_path / "x.png")
    width, height = size
    expected = f"{width}×{height} pixels, an aspect ratio above 100: resizing it would"
    assert broken(tmp_path / "x.png").startswith(expected)
    with pytest.raises(BrokenImageError, match="aspect ratio above 100"):
        read_rgb(Image.new("L", size))
    Image.new("L", (100, 1)).save(tmp_path / "x.png")
    assert read_rgb(tmp_path / "x.png").size == (100, 1)


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


def test_cmyk_as_adobe_writes_it(tmp_path: Path) -> None:
    """Inverted, which an APP14 segment tells; Pillow writes and reads that."""
    flat = Image.new("CMYK", (16, 16), (0, 200, 150, 20))
    flat.save(tmp_path / "c.jpeg", quality=100)
    content = (tmp_path / "c.jpeg").read_bytes()
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
    assert adobe in content
    expected = np.asarray(flat.convert("RGB"))[0, 0]
    assert np.allclose(np.asarray(read_rgb(tmp_path / "c.jpeg"))[0, 0], expected, atol=4)


def test_alpha_is_left_out(tmp_path: Path) -> None:
    """What is fully transparent keeps the colour that it has."""
    rgba = np.concatenate([PIXELS, np.zeros((12, 10, 1), np.uint8)], axis=2)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(read_rgb(tmp_path / "a.png")), PIXELS)


def test_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(tmp_path / "o.jpeg", exif=exif)
    assert read_rgb(tmp_path / "o.jpeg").size == (10, 12)


def test_an_image_that_comes_opened_is_refused_as_a_bomb_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    picture = Image.fromarray(PIXELS)
    assert read_rgb(picture).size == (10, 12)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 119)
    with pytest.raises(BrokenImageError, match="decompression bomb"):
        read_rgb(picture)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_rgb(picture).size == (10, 12)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jpeg")
    assert broken(tmp_path / "x.jpeg") == "not a regular file"
    assert broken(tmp_path) == "not a regular file"


FORMATS = {"JPEG": "RGB", "PNG": "P", "GIF": "P", "TIFF": "CMYK", "WEBP": "RGB", "AVIF": "RGB"}


def reason_for(path: Path) -> str:
    """Why an image is refused; nothing where it is not."""
    try:
        assert read_rgb(path).mode == "RGB"
    except BrokenImageError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", FORMATS)
def test_damage_is_refused_in_one_line_or_passed_over(tmp_path: Path, kind: str) -> None:
    """Whatever the decoders raise; and no file stays open."""
    Image.fromarray(PIXELS).convert(FORMATS[kind]).save(tmp_path / "x", kind)
    whole = (tmp_path / "x").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = np.frombuffer(whole, np.uint8).copy()
        where = rng.integers(0, len(damaged), rng.integers(1, 9))
        damaged[where] = rng.integers(0, 256, len(where))
        (tmp_path / "x").write_bytes(damaged.tobytes())
        reason = reason_for(tmp_path / "x")
        assert "\n" not in reason
        refused += bool(reason)
    assert refused > 10
