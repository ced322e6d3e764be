"""Images in a message: what becomes of files, bytes and URLs, and that other parts pass through."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from jazz_llm import LLMCapabilityError, LLMInvalidRequestError, Message, OpenAICompatibleLLM
from jazz_llm.images import MAX_SIZE
from jazz_llm.testing import FakeServer

from .colours import Async, Sync

Colour = Sync | Async
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=")
KINDS = {
    "image/png": PNG,
    "image/jpeg": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00",
    "image/gif": b"GIF89a\x01\x00\x01\x00",
    "image/gif ": b"GIF87a\x01\x00\x01\x00",
    "image/webp": b"RIFF\x1a\x00\x00\x00WEBPVP8L",
}


def url_of(image: Any) -> str:
    content = Message.user("What is this?", images=[image]).content
    assert isinstance(content, list)
    text, part = content
    assert text == {"type": "text", "text": "What is this?"}
    assert part["type"] == "image_url"
    url: str = part["image_url"]["url"]
    return url


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_and_bytes_become_data_urls_of_the_right_kind(kind: str, tmp_path: Path) -> None:
    data = KINDS[kind]
    path = tmp_path / "with a wrong ending.txt"
    path.write_bytes(data)
    expected = f"data:{kind.strip()};base64,{base64.b64encode(data).decode()}"
    for image in (path, str(path), data, bytearray(data), memoryview(data)):
        assert url_of(image) == expected


@pytest.mark.parametrize("url", ["https://h.example/a.png", "http://h.example/a?b=c", "HTTPS://H/x", "data:image/png;base64,AAAA", "data:,x"])
def test_a_url_stays_what_it_is(url: str) -> None:
    assert url_of(url) == url


def test_a_path_that_only_looks_like_a_url_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("https.png").write_bytes(PNG)
    assert url_of("https.png").startswith("data:image/png;")


def test_several_keep_their_order_and_stand_after_the_text() -> None:
    content = Message.user("two", images=["https://h/1", PNG, "https://h/2"]).content
    assert isinstance(content, list)
    assert [part["type"] for part in content] == ["text", "image_url", "image_url", "image_url"]
    assert [part["image_url"]["url"][:10] for part in content[1:]] == ["https://h/", "data:image", "https://h/"]
    assert content[3]["image_url"]["url"].endswith("2")


@pytest.mark.parametrize("images", [None, [], ()])
def test_without_images_the_content_is_the_text(images: Any) -> None:
    assert Message.user("hi", images=images) == Message.user("hi") == Message("user", "hi")


def test_parts_stay_before_the_images_and_an_empty_text_is_none() -> None:
    parts = [{"type": "text", "text": "a"}]
    assert Message.user(parts, images=["data:,x"]).content == [*parts, {"type": "image_url", "image_url": {"url": "data:,x"}}]
    assert parts == [{"type": "text", "text": "a"}]
    assert Message.user("", images=["data:,x"]).content == [{"type": "image_url", "image_url": {"url": "data:,x"}}]


def test_the_largest_is_sent_and_one_byte_more_is_not(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    for data, fits in ((PNG.ljust(MAX_SIZE, b"\0"), True), (PNG.ljust(MAX_SIZE + 1, b"\0"), False)):
        path.write_bytes(data)
        for image in (path, data):
            if fits:
                assert len(url_of(image)) > MAX_SIZE
            else:
                with pytest.raises(LLMInvalidRequestError, match=r"images\[0\].* is larger than 20 MB"):
                    url_of(image)


def bad_images(folder: Path) -> dict[str, tuple[Any, str]]:
    (folder / "empty.png").touch()
    (folder / "page.html").write_text("<html>")
    os.mkfifo(folder / "pipe")
    return {
        "missing": (folder / "none.png", "none.png'.* cannot be read: No such file"),
        "missing text": (str(folder / "none.png"), "none.png'.* cannot be read: No such file"),
        "a folder": (folder, "cannot be read: it is no file"),
        "a pipe": (folder / "pipe", "pipe'.* cannot be read: it is no file"),
        "a device": ("/dev/zero", "/dev/zero'.* cannot be read: it is no file"),
        "empty": (folder / "empty.png", "empty.png'.* is empty"),
        "no bytes": (b"", "is empty"),
        "an unknown kind": (folder / "page.html", "page.html'.* is no image that is known here"),
        "unknown bytes": (b"BM\x00", "is no image"),
        "RIFF, but sound": (b"RIFF\x1a\x00\x00\x00WAVEfmt ", "is no image"),
        "a NUL": ("a\0b.png", "cannot be read: .*null"),
        "a number": (5, "must be a path, bytes or a URL, not int"),
        "none": (None, "not NoneType"),
        "a part": ({"type": "image_url"}, "not dict"),
        "no text at all": ("", "cannot be read"),
    }


@pytest.mark.skipif(os.name == "nt", reason="makes a named pipe")
def test_every_bad_image_is_named(tmp_path: Path) -> None:
    for name, (image, words) in bad_images(tmp_path).items():
        with pytest.raises(LLMInvalidRequestError, match=r"images\[1\].*" + words):
            Message.user("hi", images=["data:,x", image])
            raise AssertionError(name)


@pytest.mark.parametrize("images", [PNG, "a.png", b"", "", {"a": 1}, Path("a.png"), 5])
def test_one_image_belongs_in_a_list(images: Any) -> None:
    with pytest.raises(LLMInvalidRequestError, match="images must be a list"):
        Message.user("hi", images=images)


# --- on the wire ---------------------------------------------------------------------------------------------------

PARTS: list[dict[str, Any]] = [
    {"type": "text", "text": "all kinds"},
    {"type": "image_url", "image_url": {"url": "https://h/1.png", "detail": "low"}},
    {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
    {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}},
    {"type": "video_url", "video_url": {"url": "https://h/1.mp4"}, "of": ["another", {"kind": 1}]},
]


def test_parts_of_every_kind_go_out_as_they_are(colour: Colour) -> None:
    with FakeServer() as server, OpenAICompatibleLLM("m", base_url=server.url) as llm:
        colour.generate(llm, [Message.user(PARTS), {"role": "user", "content": PARTS}])
        colour.stream(llm, [Message.user("look", images=[PNG])])
    first, second = (request.json()["messages"] for request in server.requests)
    assert [message["content"] for message in first] == [PARTS, PARTS]
    assert second[0]["content"][1]["image_url"]["url"] == "data:image/png;base64," + base64.b64encode(PNG).decode()


def test_a_message_with_images_is_json() -> None:
    assert json.loads(json.dumps(Message.user("look", images=[PNG]).content))


def test_where_text_is_all_that_is_taken_nothing_is_sent(colour: Colour) -> None:
    with FakeServer() as server, OpenAICompatibleLLM("m", "k", server.url, provider="novelai") as llm:
        for call in (colour.generate, colour.stream):
            with pytest.raises(LLMCapabilityError, match="novelai takes text only"):
                call(llm, [Message.user("look", images=[PNG])])
    assert not server.requests


def test_a_missing_image_is_reported_before_the_call() -> None:
    with pytest.raises(LLMInvalidRequestError) as caught:
        Message.user("look", images=["/nowhere/a.png"])
    assert (caught.value.status_code, caught.value.retryable) == (None, False)


def test_a_picture_needs_no_text() -> None:
    assert Message.user(None, images=[PNG]) == Message.user("", images=[PNG])
