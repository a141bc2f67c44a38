"""Bodies of a detect request: raw bytes, multipart/form-data or JSON → encoded images and options as text.

Multipart is RFC 7578, base64 is RFC 4648 §4. Nothing is written to disk, and file names are never looked at.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from models.errors import InvalidImageError, SteelyardError, UnsupportedImageError
from serve.errors import InvalidBodyError, OptionError, TooManyImagesError, UnsupportedMediaTypeError
from serve.protocols.native_options import NAMES

if TYPE_CHECKING:
    from collections.abc import Callable

RAW_TYPES: Final = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")
_RAW: Final = frozenset({*RAW_TYPES, "image/jpg", "image/pjpeg", ""})
MULTIPART: Final = "multipart/form-data"
JSON: Final = "application/json"
FILE_FIELD: Final = "file"

OFF_LOOP_BYTES: Final = 256 * 1024
"""Bodies above this are parsed on a worker thread; below, the thread would cost more than the parse."""
_BASE64_STEP: Final = 1024 * 1024
"""Characters decoded a call, a multiple of 4: one call holds the interpreter, and the loop with it, about 1 ms."""
_MAX_OTHER_FIELDS: Final = 64
_MAX_FIELD_BYTES: Final = 4096
_MAX_PART_HEADERS: Final = 8
_MAX_HEADER_BYTES: Final = 4096
_MAX_JSON_MARKS: Final = 4096
"""Commas and opening brackets of a JSON body. Base64 has none, options have few; 20 MB of empty lists would become half
a gigabyte of objects."""
_EXACT: Final = 2.0**53
_WHITESPACE: Final = str.maketrans("", "", " \t\r\n")

ImageBytes = bytes | SteelyardError
"""An encoded image, or why this one of several could not even be read."""


@dataclass(slots=True)
class Parsed:
    """What a body holds: at least one image, and options as (name, text) pairs."""

    images: list[ImageBytes] = field(default_factory=list)
    options: list[tuple[str, str]] = field(default_factory=list)


async def parse_body(body: bytes, content_type: str, *, max_images: int) -> Parsed:
    """Return the images and options in ``body``.

    Raises UnsupportedMediaTypeError, UnsupportedImageError (an image type outside the allow-list),
    InvalidImageError (empty), InvalidBodyError or TooManyImagesError.
    """
    media_type, parameters = parse_options_header(content_type)
    kind = media_type.decode("latin-1").strip().lower()
    if kind in _RAW:
        return Parsed(images=[_not_empty(body)])
    parse: Callable[[], Parsed]
    if kind == MULTIPART:
        boundary = parameters.get(b"boundary", b"")

        def parse() -> Parsed:
            return _parse_multipart(body, boundary, max_images)
    elif kind == JSON:

        def parse() -> Parsed:
            return _parse_json(body, max_images)
    elif kind.startswith("image/"):
        msg = "The Content-Type names an image format that is not served; send JPEG, PNG or WebP"
        raise UnsupportedImageError(msg)
    else:
        msg = (
            "The Content-Type is not one that this route reads; send the image with Content-Type: image/jpeg, "
            "image/png or image/webp, a multipart form with the field file, or JSON with the key image"
        )
        raise UnsupportedMediaTypeError(msg)
    parsed = await asyncio.to_thread(parse) if len(body) > OFF_LOOP_BYTES else parse()
    if len(parsed.images) == 1 and isinstance(parsed.images[0], SteelyardError):
        raise parsed.images[0]
    return parsed


def _not_empty(data: bytes) -> bytes:
    if not data:
        msg = "The image is empty; send the bytes of a JPEG, PNG or WebP file"
        raise InvalidImageError(msg)
    return data


def _image(read: Callable[[], bytes]) -> ImageBytes:
    try:
        return _not_empty(read())
    except SteelyardError as error:
        return error


def _check_count(count: int, max_images: int) -> None:
    if count > max_images:
        msg = f"The request holds more than {max_images} images; send the others in further requests"
        raise TooManyImagesError(msg)


class _Form:
    """Collects the parts of one multipart body while the parser walks over it."""

    def __init__(self, max_images: int) -> None:
        self.parsed = Parsed()
        self.complete = False
        self._max_images = max_images
        self._header = b""
        self._value = b""
        self._name = ""
        self._is_file = False
        self._data = bytearray()

    def on_part_begin(self) -> None:
        self._name = ""
        self._is_file = False
        self._data = bytearray()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._header.strip().lower() == b"content-disposition":
            _, parameters = parse_options_header(self._value)
            self._name = parameters.get(b"name", b"").decode("utf-8", "replace")
            self._is_file = self._name == FILE_FIELD
            if b"filename" in parameters and not self._is_file:
                msg = f"The form sends a file in the field {self._name[:64]!r}; send it in the field {FILE_FIELD!r}"
                raise InvalidBodyError(msg)
        self._header = self._value = b""

    def on_headers_finished(self) -> None:
        if not self._name:
            msg = "A part of the form has no name; name the parts with images 'file'"
            raise InvalidBodyError(msg)
        if self._is_file:
            _check_count(len(self.parsed.images) + 1, self._max_images)
        elif len(self.parsed.options) >= _MAX_OTHER_FIELDS:
            msg = f"The form holds more than {_MAX_OTHER_FIELDS} fields beside its files; send fewer"
            raise InvalidBodyError(msg)

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if not self._is_file and len(self._data) + end - start > _MAX_FIELD_BYTES:
            msg = f"The form's field {self._name[:64]!r} exceeds {_MAX_FIELD_BYTES} bytes; images go into 'file'"
            raise InvalidBodyError(msg)
        self._data += memoryview(data)[start:end]

    def on_part_end(self) -> None:
        data = bytes(self._data)
        self._data = bytearray()
        if self._is_file:
            self.parsed.images.append(_image(lambda: data))
        else:
            self.parsed.options.append((self._name, data.decode("utf-8", "replace")))

    def on_end(self) -> None:
        self.complete = True


def _parse_multipart(body: bytes, boundary: bytes, max_images: int) -> Parsed:
    if not boundary:
        msg = "The multipart Content-Type has no boundary; let the HTTP library write that header"
        raise InvalidBodyError(msg)
    form = _Form(max_images)
    names = ("part_begin", "part_data", "part_end", "header_field", "header_value", "header_end", "headers_finished")
    try:
        parser = MultipartParser(
            boundary,
            {f"on_{name}": getattr(form, f"on_{name}") for name in (*names, "end")},  # type: ignore[arg-type]
            max_header_count=_MAX_PART_HEADERS,
            max_header_size=_MAX_HEADER_BYTES,
        )
        parser.write(body)
        parser.finalize()
    except FormParserError:
        msg = "The body is not a well-formed multipart form; let the HTTP library write it"
        raise InvalidBodyError(msg) from None
    if not form.complete:
        msg = "The multipart form ends before its closing boundary; send it whole"
        raise InvalidBodyError(msg)
    if not form.parsed.images:
        msg = "The form holds no image; send at least one file in the field 'file'"
        raise InvalidBodyError(msg)
    return form.parsed


def _parse_json(body: bytes, max_images: int) -> Parsed:
    # Every value beyond the first needs a comma or a bracket, so this bounds both the number of values and their depth.
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > _MAX_JSON_MARKS:
        msg = f"The JSON body holds more than {_MAX_JSON_MARKS} values; it needs only the images and their options"
        raise InvalidBodyError(msg)
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        msg = 'The body is not JSON; send {"image": "<base64>"} or {"images": ["<base64>", ...]}'
        raise InvalidBodyError(msg) from None
    if not isinstance(document, dict) or ("image" in document) == ("images" in document):
        msg = 'The JSON body needs exactly one of the keys "image" and "images"'
        raise InvalidBodyError(msg)
    texts: Any = [document.pop("image")] if "image" in document else document.pop("images")
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        msg = '"image" is a base64 string, "images" a non-empty list of them'
        raise InvalidBodyError(msg)
    _check_count(len(texts), max_images)
    options = [pair for name, value in document.items() for pair in _option_pairs(name, value)]
    return Parsed(images=[_image(lambda text=text: decode_base64(text)) for text in texts], options=options)  # type: ignore[misc]


def _option_pairs(name: str, value: object) -> list[tuple[str, str]]:
    """Return JSON options as the text that the query would carry, so that one parser judges both."""
    if name not in NAMES:
        return [(name, "")]
    if value is None:
        return []
    if name == "classes":
        values = value if isinstance(value, list) else [value]
    elif not isinstance(value, bool if name == "normalize" else (int, float)):
        kind = "true or false" if name == "normalize" else "a number"
        msg = f"{name} is not {kind}; send it as JSON writes {kind}, without quotes"
        raise OptionError(msg, parameter=name)
    else:
        values = [value]
    return [(name, item if isinstance(item, str) else orjson.dumps(_whole(item)).decode()) for item in values]


def _whole(value: object) -> object:
    """Return 130 for 130.0, which is the same number in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT else value


def decode_base64(text: str) -> bytes:
    """Return the bytes behind ``text``: RFC 4648 base64, padded; line breaks and a ``data:`` prefix are allowed.

    Addresses are refused: this service fetches nothing. Raises InvalidBodyError.
    """
    if text.startswith("data:"):
        head, _, text = text.partition(",")
        if not head.endswith(";base64"):
            msg = 'A data URL needs base64 content: "data:image/jpeg;base64,..."'
            raise InvalidBodyError(msg)
    elif text.startswith(("http://", "https://", "file:")):
        msg = "Images are not fetched from addresses; send the image itself as base64"
        raise InvalidBodyError(msg)
    if any(space in text for space in " \t\r\n"):
        text = text.translate(_WHITESPACE)
    try:
        if len(text) <= _BASE64_STEP:
            return base64.b64decode(text, validate=True)
        steps = range(0, len(text), _BASE64_STEP)
        pieces = [base64.b64decode(text[start : start + _BASE64_STEP], validate=True) for start in steps]
    except (binascii.Error, ValueError):
        msg = "An image is not valid base64; encode the file's bytes with the standard alphabet and padding"
        raise InvalidBodyError(msg) from None
    if any(len(piece) != _BASE64_STEP // 4 * 3 for piece in pieces[:-1]):
        msg = "An image has base64 padding before its end; encode each image in one piece"
        raise InvalidBodyError(msg)
    return b"".join(pieces)
