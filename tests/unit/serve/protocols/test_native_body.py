"""The three bodies: what is read, what is refused, and that they agree."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import InvalidImageError, SteelyardError, UnsupportedImageError
from serve.errors import InvalidBodyError, OptionError, TooManyImagesError, UnsupportedMediaTypeError
from serve.protocols import native_body
from serve.protocols.native_body import Parsed, decode_base64, parse_body
from serve.protocols.native_options import parse_options

BOUNDARY = "frontier"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


def part(data: bytes, name: str = "file", filename: str | None = "a.jpg") -> bytes:
    """Return one part of a form."""
    named = "" if filename is None else f'; filename="{filename}"'
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
    return head.encode() + data + b"\r\n"


def form(*parts: bytes) -> bytes:
    """Return a whole form."""
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def parse(body: bytes, content_type: str) -> Parsed:
    """Parse a body with a limit of three images."""
    return asyncio.run(parse_body(body, content_type, max_images=3))


@given(st.lists(st.binary(min_size=1, max_size=400), min_size=1, max_size=3))
def test_the_three_bodies_carry_the_same_bytes(images: list[bytes]) -> None:
    """Raw, form and JSON hand the engine identical images, in order."""
    encoded = [base64.b64encode(image).decode() for image in images]
    # A boundary may not occur in what it separates; clients choose one at random.
    if not any(BOUNDARY.encode() in image for image in images):
        assert parse(form(*(part(image) for image in images)), FORM).images == images
    assert parse(orjson.dumps({"images": encoded}), "application/json").images == images
    assert parse(orjson.dumps({"image": encoded[0]}), "application/json; charset=utf-8").images == images[:1]
    assert parse(images[0], "image/jpeg").images == images[:1]


@given(
    st.binary(max_size=300), st.sampled_from([FORM, "application/json", "image/png", "", "x/y", "multipart/form-data"])
)
def test_any_body_is_parsed_or_refused(body: bytes, content_type: str) -> None:
    """No bytes under any type are a crash."""
    with contextlib.suppress(SteelyardError):
        assert parse(body, content_type).images


@pytest.mark.parametrize(
    "content_type", ["image/jpeg", "IMAGE/PNG", "image/webp; q=1", "application/octet-stream", "", "image/jpg"]
)
def test_raw_types(content_type: str) -> None:
    """The bytes decide what an image is, so each of these means: the body is the image."""
    assert parse(b"\xff\xd8", content_type).images == [b"\xff\xd8"]


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/mixed; boundary=a", "nonsense"]
)
def test_other_types_are_unsupported(content_type: str) -> None:
    """The refusal says which types there are."""
    with pytest.raises(UnsupportedMediaTypeError, match="image/jpeg"):
        parse(b"\xff\xd8", content_type)


@pytest.mark.parametrize("content_type", ["image/gif", "image/svg+xml", "image/tiff"])
def test_other_image_types_are_unsupported_images(content_type: str) -> None:
    """A format outside the allow-list has the same code however it is noticed."""
    with pytest.raises(UnsupportedImageError):
        parse(b"GIF89a", content_type)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "image/jpeg"),
        (form(part(b"")), FORM),
        (b'{"image":""}', "application/json"),
        (b'{"images":[""]}', "application/json"),
    ],
)
def test_an_empty_image_is_invalid(body: bytes, content_type: str) -> None:
    """Nothing at all is no image, whatever wraps it."""
    with pytest.raises(InvalidImageError):
        parse(body, content_type)


@pytest.mark.parametrize(
    ("body", "content_type", "match"),
    [
        (form(part(b"a")), "multipart/form-data", "boundary"),
        (form(part(b"a")), "multipart/form-data; boundary=" + "x" * 300, "well-formed"),
        (form(part(b"a"))[:-8], FORM, "closing boundary"),
        (part(b"a")[:20], FORM, "closing boundary"),
        (b"", FORM, "closing boundary"),
        (b"hello", FORM, "well-formed"),
        (form(part(b"0.5", "conf", None)), FORM, "no image"),
        (form(part(b"a", "upload")), FORM, "'upload'"),
        (form(part(b"a", "", None)), FORM, "no name"),
        (form(part(b"a" * 5000, "conf", None)), FORM, "exceeds"),
        (form(*[part(b"1", "classes", None)] * 65), FORM, "fields"),
        (b"--frontier\r\n" + b"X: y\r\n" * 30 + b"\r\n\r\n--frontier--", FORM, "well-formed"),
        (b"--frontier\r\nX: " + b"y" * 9000 + b"\r\n\r\n\r\n--frontier--", FORM, "well-formed"),
        (b"", "application/json", "not JSON"),
        (b"{", "application/json", "not JSON"),
        (b'{"image":"AA=="} x', "application/json", "not JSON"),
        (b'{"image":NaN}', "application/json", "not JSON"),
        (b"\xff", "application/json", "not JSON"),
        (b"[" * 4000, "application/json", "not JSON"),
        (b"[" * 5000, "application/json", "more than 4096 values"),
        (b"[]", "application/json", "exactly one"),
        (b"{}", "application/json", "exactly one"),
        (b'{"image":"AA==","images":["AA=="]}', "application/json", "exactly one"),
        (b'{"image":1}', "application/json", "base64 string"),
        (b'{"image":["AA=="]}', "application/json", "base64 string"),
        (b'{"images":[]}', "application/json", "non-empty"),
        (b'{"images":"AA=="}', "application/json", "non-empty"),
        (b'{"image":"A"}', "application/json", "base64"),
        (b'{"image":"AA==AA=="}', "application/json", "base64"),
        (b'{"image":"https://example.org/a.jpg"}', "application/json", "not fetched"),
        (b'{"image":"data:image/jpeg,AAAA"}', "application/json", "base64 content"),
    ],
)  # fmt: skip
def test_broken_bodies_are_refused_with_what_to_do(body: bytes, content_type: str, match: str) -> None:
    """Every way in which a body can be malformed ends in one clear sentence."""
    with pytest.raises(InvalidBodyError, match=match):
        parse(body, content_type)


def test_too_many_images_are_refused() -> None:
    """The limit holds for forms and for JSON."""
    with pytest.raises(TooManyImagesError):
        parse(form(*[part(b"a")] * 4), FORM)
    with pytest.raises(TooManyImagesError):
        parse(orjson.dumps({"images": ["AA=="] * 4}), "application/json")


HOSTILE_JSON = {
    "250 000 deep": b'{"image":' + b"[" * 250_000 + b"]" * 250_000 + b"}",
    "objects 250 000 deep": b'{"image":' * 250_000 + b"1" + b"}" * 250_000,
    "a million lists": b'{"images":[' + b"[]," * 1_000_000 + b'"QQ=="]}',
    "a million keys": b"{" + b",".join(b'"k%d":1' % n for n in range(1_000_000)) + b"}",
    "a huge whole number": b'{"image":"QQ==","max_det":' + b"9" * 1_000_000 + b"}",
    "a huge number": b'{"image":"QQ==","conf":1e' + b"9" * 100_000 + b"}",
    "a lone surrogate": b'{"image":"\\ud800"}',
    "a lone surrogate as a key": b'{"image":"QQ==","\\udfff":1}',
    "not UTF-8": b'{"image":"\xff\xfe"}',
    "no end": b'{"image":"' + b"Q" * 1_000_000,
    "NaN": b'{"image":"QQ==","conf":NaN}',
}


@pytest.mark.parametrize("case", HOSTILE_JSON)
def test_hostile_json_is_refused_at_once(case: str) -> None:
    """Neither depth nor number of values nor digits cost more than reading the bytes."""
    begun = time.process_time()
    with pytest.raises(SteelyardError):
        parse_options(parse(HOSTILE_JSON[case], "application/json").options)
    assert time.process_time() - begun < 0.5


def test_of_equal_keys_the_last_one_counts() -> None:
    """As most readers of JSON do; whatever stands before is not looked at."""
    body = b'{"image":"QQ==","conf":0.1,"image":"Qg==","conf":0.9}'
    assert parse(body, "application/json") == Parsed([b"B"], [("conf", "0.9")])


def test_options_by_the_hundred_still_fit() -> None:
    """What is refused as too many values is far from what anybody asks for."""
    classes = [str(number) for number in range(500)]
    found = parse(orjson.dumps({"images": ["QQ=="] * 3, "classes": classes}), "application/json")
    assert len(found.options) == 500


MEGA = 1_000_000
HOSTILE_FORMS = {
    "tiny parts": b"".join([part(b"x", "conf", None)] * (2 * MEGA // 64)),
    "empty parts": f"--{BOUNDARY}\r\n\r\n\r\n".encode() * (2 * MEGA // 20),
    "images by the thousand": part(b"x") * 5000,
    "headers by the thousand": f"--{BOUNDARY}\r\n".encode() + b"a: b\r\n" * (2 * MEGA // 6) + b"\r\n",
    "a header without end": f"--{BOUNDARY}\r\na: ".encode() + b"b" * (2 * MEGA),
    "a header's name without end": f"--{BOUNDARY}\r\n".encode() + b"b" * (2 * MEGA),
    "line breaks before the first part": b"\r\n" * MEGA,
    "almost boundaries": part(f"\r\n--{BOUNDARY[:-1]}".encode() * (2 * MEGA // 11)),
    "line breaks in an image": part(b"\r\n" * MEGA),
    "parameters by the thousand": f"--{BOUNDARY}\r\nContent-Disposition: form-data".encode()
    + b"; name=x" * 400
    + b"\r\n\r\n\r\n",
    "quotes without end": f"--{BOUNDARY}\r\nContent-Disposition: form-data; name=".encode()
    + b'"\\' * 1900
    + b"\r\n\r\n\r\n",
    "a field without end": part(b"x" * (2 * MEGA), "conf", None),
    "names as long as allowed": part(b"x", "n" * 3900, None) * 500,
}


@pytest.mark.parametrize("case", HOSTILE_FORMS)
def test_hostile_forms_cost_little(case: str) -> None:
    """Two megabytes of whatever a form may be made of take well under a second of CPU, refused or not."""
    begun = time.process_time()
    with contextlib.suppress(SteelyardError):
        parse(HOSTILE_FORMS[case], FORM)
    assert time.process_time() - begun < 1.0


def test_one_unreadable_image_of_several_carries_its_own_error() -> None:
    """The others are still answered."""
    parsed = parse(b'{"images":["AAA=","?"]}', "application/json")
    assert parsed.images[0] == b"\0\0"
    assert isinstance(parsed.images[1], InvalidBodyError)


def test_options_may_stand_in_the_body() -> None:
    """Fields of a form and keys of JSON become the same text that a query would carry."""
    fields = [part(b"0.5", "conf", None), part(b"a"), part(b"true", "normalize", None)]
    assert parse(form(*fields), FORM).options == [("conf", "0.5"), ("normalize", "true")]
    body = {"image": "AAAA", "conf": 0.5, "classes": [1, "tv, small"], "normalize": True, "iou": None, "imgsz": {}}
    assert parse(orjson.dumps(body), "application/json").options == [
        ("conf", "0.5"), ("classes", "1"), ("classes", "tv, small"), ("normalize", "true"), ("imgsz", ""),
    ]  # fmt: skip


def test_a_whole_number_may_be_written_with_a_point() -> None:
    """130.0 is 130 in JSON, and whatever is beyond every integer stays what it is."""
    body = b'{"image":"QQ==","max_det":130.0,"classes":[1.0,2],"conf":1e300,"iou":0.5}'
    assert parse(body, "application/json").options == [
        ("max_det", "130"), ("classes", "1"), ("classes", "2"), ("conf", "1e+300"), ("iou", "0.5"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [("conf", "0.5"), ("iou", []), ("max_det", "5"), ("decimals", {}), ("normalize", 1), ("normalize", "true")],
)
def test_options_in_json_are_of_their_own_kind(name: str, value: object) -> None:
    """What the schema calls a number is no text, and what it calls true or false no number."""
    with pytest.raises(OptionError) as caught:
        parse(orjson.dumps({"image": "AAAA", name: value}), "application/json")
    assert caught.value.parameter == name


def test_a_form_file_needs_no_file_name() -> None:
    """The field's name alone says that a part is an image, and no file name is ever used."""
    assert parse(form(part(b"a", filename=None)), FORM).images == [b"a"]
    assert parse(form(part(b"a", filename="../../etc/passwd")), FORM).images == [b"a"]


@given(st.binary(max_size=200), st.booleans(), st.booleans())
def test_base64_comes_back(data: bytes, wrapped: bool, as_url: bool) -> None:  # noqa: FBT001
    """Line breaks, as the base64 command writes them, and data URLs are understood."""
    text = base64.encodebytes(data).decode() if wrapped else base64.b64encode(data).decode()
    assert decode_base64(("data:image/png;base64," if as_url else "") + text) == data


@given(st.binary(max_size=200))
def test_base64_in_steps_is_base64(data: bytes) -> None:
    """Decoding a long text piece by piece gives what one call gives, and refuses padding within."""
    text = base64.b64encode(data).decode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_body, "_BASE64_STEP", 8)
        assert decode_base64(text) == data
        with pytest.raises(InvalidBodyError):
            decode_base64("AAAAAA==" + "AAAA")


def test_large_bodies_are_parsed_off_the_loop() -> None:
    """A body above the threshold gives the same images through the worker thread."""
    image = bytes(range(256)) * 2048
    assert parse(orjson.dumps({"image": base64.b64encode(image).decode()}), "application/json").images == [image]
    assert parse(form(part(image)), FORM).images == [image]
