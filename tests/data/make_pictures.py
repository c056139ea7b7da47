"""Image files of every kind that people have, and of some that only an attacker has, as bytes."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps, features

HEIGHT, WIDTH = 33, 50


@cache
def scene(height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    """Smooth colors, so that lossy files are close to it; no two corners are alike."""
    y, x = np.mgrid[:height, :width]
    red, blue = 40 + 200 * x // max(1, width - 1), 250 - 230 * y // max(1, height - 1)
    return Image.fromarray(np.dstack([red, (x + 3 * y) % 90, blue]).astype(np.uint8))


def encode(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    """The bytes of a file that Pillow writes."""
    buffer = io.BytesIO()
    (image or scene()).save(buffer, kind, **options)
    return buffer.getvalue()


def _oriented(value: int, thumbnail: bool = False) -> bytes:
    """A JPEG whose EXIF says how it is turned, with a whole JPEG as thumbnail in it if that is asked for."""
    exif = Image.Exif()
    exif[0x0112] = value
    small = encode("JPEG", scene(16, 16))
    if not thumbnail:
        return encode("JPEG", exif=exif, quality=95)
    head = b"II*\0\x08\0\0\0"
    first = struct.pack("<H", 1) + struct.pack("<HHII", 0x0112, 3, 1, value) + struct.pack("<I", 26)
    second = (
        struct.pack("<H", 2) + struct.pack("<HHII", 0x0201, 4, 1, 56) + struct.pack("<HHII", 0x0202, 4, 1, len(small))
    )
    return encode("JPEG", exif=b"Exif\0\0" + head + first + second + struct.pack("<I", 0) + small, quality=95)


@cache
def pictures() -> dict[str, bytes]:
    """Sound files by name; the name begins with the ending of the file."""
    rgb, gray, turned = scene(), scene().convert("L"), scene().rotate(180)
    clear = scene().copy()
    clear.putalpha(gray)
    palette = rgb.quantize(64)
    found = {
        "jpg": encode("JPEG"), "jpg progressive": encode("JPEG", progressive=True), "jpg gray": encode("JPEG", gray),
        "jpg CMYK": encode("JPEG", rgb.convert("CMYK"), quality=95), "jpg thumbnail": _oriented(1, thumbnail=True),
        "jpg with a tail": encode("JPEG") + b"tail" * 9, "jpg comment": encode("JPEG", comment=b"\xff\xd9" * 9),
        "png": encode("PNG"), "png alpha": encode("PNG", clear), "png gray alpha": encode("PNG", clear.convert("LA")),
        "png palette": encode("PNG", palette), "png clear palette": encode("PNG", palette, transparency=0),
        "png 1 bit": encode("PNG", rgb.convert("1")), "png animated": _animated("PNG", rgb, turned),
        "png 16 bit": cv2.imencode(".png", _wide(rgb))[1].tobytes(),
        "png gray 16 bit": cv2.imencode(".png", _wide(gray))[1].tobytes(),
        "gif": encode("GIF", palette), "gif animated": _animated("GIF", palette, turned.quantize(64)),
        "webp": encode("WEBP"), "webp lossless": encode("WEBP", lossless=True), "webp alpha": encode("WEBP", clear),
        "webp animated": _animated("WEBP", rgb, turned),
        "bmp": encode("BMP"), "bmp palette": encode("BMP", palette), "ppm": encode("PPM"), "pgm": encode("PPM", gray),
        "pbm": encode("PPM", rgb.convert("1")), "tif": encode("TIFF"), "tif pages": _animated("TIFF", rgb, turned),
        "tif CMYK": encode("TIFF", rgb.convert("CMYK")), "tif 16 bit": cv2.imencode(".tif", _wide(rgb))[1].tobytes(),
        "tif LZW": encode("TIFF", compression="tiff_lzw"), "tif JPEG": encode("TIFF", compression="jpeg"),
        "jp2": encode("JPEG2000"),
    }  # fmt: skip
    if features.check("avif"):
        found["avif"] = encode("AVIF")
    found |= {f"jpg EXIF {value}": _oriented(value) for value in range(1, 9)}
    found["jpg EXIF 6 thumbnail"] = _oriented(6, thumbnail=True)
    for ending, kind in (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"), ("bmp", "BMP"), ("tif", "TIFF")):
        found[f"{ending} 1 x 1"] = encode(kind, scene(1, 1))
    found |= {
        f"{ending} 20,000 x 5": encode(kind, scene(5, 20_000)) for ending, kind in (("jpg", "JPEG"), ("png", "PNG"))
    }
    found["png 5 x 20,000"] = encode("PNG", scene(20_000, 5))
    return found


def _animated(kind: str, first: Image.Image, second: Image.Image) -> bytes:
    return encode(kind, first, save_all=True, append_images=[second])


def _wide(image: Image.Image) -> np.ndarray:
    """16 bits, of which the lower 8 are to be dropped, in OpenCV's order of channels."""
    values = np.asarray(image).astype(np.uint16) * 256 + 201
    return values[:, :, ::-1] if values.ndim == 3 else values


@cache
def expected(name: str) -> np.ndarray:
    """The pixels of a sound file, as Pillow sees them, RGB with 8 bits."""
    if "16 bit" in name:
        return np.asarray((scene().convert("L") if "gray" in name else scene()).convert("RGB"))
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(pictures()[name]))).convert("RGB"))


@cache
def bombs() -> dict[str, bytes]:
    """Files that must be refused without much ado; the name begins with the ending of the file."""
    gif = bytearray(pictures()["gif"])
    gif[6:10] = b"\xff" * 4
    jpeg = bytearray(encode("JPEG"))
    size = jpeg.index(b"\xff\xc0") + 5
    jpeg[size : size + 4] = struct.pack(">HH", 65_000, 65_000)
    bmp = bytearray(encode("BMP"))
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    return {
        "png 60,000 x 60,000": png(60_000, 60_000, bytes(100)), "png 20,000 x 20,000": png(20_000, 20_000, bytes(100)),
        "png 2^31 x 2^31": png(2**31 - 1, 2**31 - 1, b""), "png 0 x 0": png(0, 0, b""),
        "png 30,000 x 30,000 that is whole": png(30_000, 30_000, bytes(30_000 * 3_751), bits=1, color=0),
        "gif 65,535 x 65,535": bytes(gif), "jpg 65,000 x 65,000": bytes(jpeg), "bmp 60,000 x 60,000": bytes(bmp),
        "ppm 60,000 x 60,000": b"P6 60000 60000 255\n" + bytes(99), "pgm 99,999,999,999": b"P5 99999999999 1 255\n",
        "jpg empty": b"", "png one byte": b"\x89", "jpg zeros": bytes(1000), "jpg text": b"<html>not found</html>",
        "tif no image": b"II*\0\xff\xff\xff\xff", "tif loop": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
        "tif float": encode("TIFF", scene().convert("F")),
    }  # fmt: skip


def png(width: int, height: int, pixels: bytes, bits: int = 8, color: int = 2) -> bytes:
    """A PNG that claims a size, whatever its pixels are."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
