"""Images in a message: files and bytes become data URLs (RFC 2397), URLs stay what they are."""

from __future__ import annotations

import os
import stat
from base64 import b64encode
from typing import Any

from .errors import LLMInvalidRequestError

MAX_SIZE = 20 * 2**20  # bytes; what OpenAI took of one image for long, and more than most others do
_URLS = ("http://", "https://", "data:")
# What a file of each kind begins with; the ending of its name says nothing.
_BEGINNINGS = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
}


def image_parts(images: Any) -> list[dict[str, Any]]:
    """Return the content parts of images, each a path, bytes or a URL."""
    if not isinstance(images, list | tuple):
        raise LLMInvalidRequestError(f"images must be a list, not {type(images).__name__}.")
    return [{"type": "image_url", "image_url": {"url": _url(f"images[{i}]", image)}} for i, image in enumerate(images)]


def _url(name: str, image: Any) -> str:
    if isinstance(image, str) and image[:8].lower().startswith(_URLS):
        return image
    if isinstance(image, str | os.PathLike):
        path = os.fspath(image)
        name = f"{name} ({path!r})"
        data = _read(name, path)
    elif isinstance(image, bytes | bytearray | memoryview):
        data = bytes(image)
    else:
        raise LLMInvalidRequestError(f"{name} must be a path, bytes or a URL, not {type(image).__name__}.")
    return f"data:{_kind(name, data)};base64,{b64encode(data).decode()}"


def _read(name: str, path: str | bytes) -> bytes:
    """Return a file, or one byte more than may be sent of it."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # before it is opened: to open a pipe waits for its writer
            reason = "it is no file"
        else:
            with open(path, "rb") as file:
                return file.read(MAX_SIZE + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
    raise LLMInvalidRequestError(f"{name} cannot be read: {reason}.")


def _kind(name: str, data: bytes) -> str:
    """Return the media type of an image that may be sent."""
    if not data:
        raise LLMInvalidRequestError(f"{name} is empty.")
    if len(data) > MAX_SIZE:
        raise LLMInvalidRequestError(f"{name} is larger than {MAX_SIZE >> 20} MB.")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":  # the size of the file stands between
        return "image/webp"
    found = next((kind for beginning, kind in _BEGINNINGS.items() if data.startswith(beginning)), None)
    if found is None:
        raise LLMInvalidRequestError(f"{name} is no image that is known here: PNG, JPEG, GIF or WebP.")
    return found
