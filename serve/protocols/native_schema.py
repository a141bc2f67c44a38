"""The native protocol as OpenAPI describes it. Read by ``/docs`` and ``/openapi.json`` only, never on a request."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from models.types import MAX_DETECTIONS
from serve.openapi import MODEL_PARAMETER, REQUEST_ID_PARAMETER, TIMEOUT_PARAMETER, answer, problems, ref
from serve.protocols.native_body import RAW_TYPES
from serve.protocols.native_options import DEFAULT_DECIMALS, MAX_DECIMALS


class _Schema(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class Box(_Schema):
    """Corners of a box: pixels of the upright original image, or 0 to 1 under ``normalize``."""

    x1: float
    y1: float
    x2: float
    y2: float


class Result(_Schema):
    """One object."""

    model_config = ConfigDict(use_attribute_docstrings=True, populate_by_name=True)

    name: str
    """Name of the class."""
    class_: int = Field(alias="class", ge=0)
    """Id of the class: its place in the model's list of classes."""
    confidence: float = Field(ge=0, le=1)
    box: Box


class Speed(_Schema):
    """Milliseconds of each stage."""

    preprocess: float
    inference: float
    postprocess: float


class ImageError(_Schema):
    """Why one image of several has no results."""

    code: str
    status: int
    detail: str


class ImageAnswer(_Schema):
    """One image: ``shape``, ``speed`` and ``results``, or ``error`` alone."""

    shape: tuple[int, int] | None = None
    """Height and width in pixels of the upright original image."""
    speed: Speed | None = None
    results: list[Result] | None = None
    """Objects by falling confidence."""
    error: ImageError | None = None


class AnswerThresholds(_Schema):
    """Thresholds in force: the request's where it gave them, else the release's."""

    conf: float
    iou: float
    max_det: int


class Metadata(_Schema):
    """Where the answer comes from: the one release that answered every image of the request."""

    imageCount: int  # noqa: N815 - the Ultralytics Platform's key
    model: str
    version: str
    digest: str
    """sha256 of the release's manifest, 64 hex digits."""
    generation: int
    """The fleet's generation; it only grows, by one with every promote and rollback."""
    task: str
    backend: str
    """Runtime that computed the answer."""
    thresholds: AnswerThresholds


class DetectAnswer(_Schema):
    """The answer to a detect request, images in the order they were sent."""

    images: list[ImageAnswer]
    metadata: Metadata


_CLASSES: Final = r"^[ \t\r\n\f\v]*[^ \t\r\n\f\v,][^,]*(,[ \t\r\n\f\v]*[^ \t\r\n\f\v,][^,]*)*$"
"""Names or ids between commas, none of them blank."""
_JSON_CLASSES: Final[dict[str, Any]] = {
    "type": "array",
    "items": {"anyOf": [{"type": "string", "pattern": _CLASSES}, {"type": "integer", "minimum": 0}]},
}


def _option(name: str, description: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema}


OPTIONS: Final[list[dict[str, Any]]] = [
    _option("conf", "Lowest confidence; the release's default where absent.", type="number", minimum=0, maximum=1),
    _option(
        "iou",
        "IoU above which two boxes of a class are one; only for models whose head needs NMS.",
        type="number",
        minimum=0,
        maximum=1,
    ),
    _option("max_det", "Most objects an image.", type="integer", minimum=1, maximum=MAX_DETECTIONS),
    {
        **_option(
            "classes",
            "Ids or names of the classes to keep, comma-separated or repeated.",
            type="array",
            items={"type": "string", "pattern": _CLASSES},
        ),
        "style": "form",
        "explode": True,
    },
    _option("normalize", "Divide boxes by the image's width and height.", type="boolean", default=False),
    _option(
        "decimals",
        "Decimals of confidences and boxes.",
        type="integer",
        minimum=0,
        maximum=MAX_DECIMALS,
        default=DEFAULT_DECIMALS,
    ),
]


def _describe_request(schema: dict[str, Any]) -> None:
    """Say what pydantic has no words for: one of two keys, and options that may be absent or null."""
    for image in schema["properties"].values():
        del image["default"]
    for option in OPTIONS:
        kinds: list[dict[str, Any]] = [option["schema"], {"type": "null"}]
        if option["name"] == "classes":
            kinds = [_JSON_CLASSES, *_JSON_CLASSES["items"]["anyOf"], {"type": "null"}]
        schema["properties"][option["name"]] = {"anyOf": kinds, "description": option["description"]}
    schema["oneOf"] = [{"required": ["image"]}, {"required": ["images"]}]


class DetectRequest(_Schema):
    """JSON body: exactly one of ``image`` and ``images``. The options may stand here instead of in the query."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid", json_schema_extra=_describe_request)

    image: str = Field(default="", min_length=1, json_schema_extra={"contentEncoding": "base64"})
    """One image, base64; a ``data:`` URL is accepted, an address is not."""
    images: list[str] = Field(default=[], min_length=1)
    """Several images, base64 each."""


_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
_FORM: Final = {
    "type": "object",
    "additionalProperties": False,
    "required": ["file"],
    "properties": {
        "file": {
            "description": "An image; repeat the field for several.",
            "oneOf": [
                {"type": "string", "format": "binary"},
                {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}},
            ],
        },
        **{str(option["name"]): option["schema"] for option in OPTIONS},
    },
}
_BODY: Final = {
    "required": True,
    "description": "JPEG, PNG or WebP: the bytes themselves, a form, or base64 in JSON. Compressed bodies are refused.",
    "content": {
        **dict.fromkeys(RAW_TYPES, _BINARY),
        "multipart/form-data": {"schema": _FORM},
        "application/json": {"schema": ref(DetectRequest)},
    },
}
_HEADERS: Final[dict[str, dict[str, Any]]] = {
    "X-Model-Version": {"description": "Version that answered.", "schema": {"type": "string"}},
    "X-Weights-Digest": {"description": "Digest of that version.", "schema": {"type": "string"}},
    "Server-Timing": {
        "description": "Milliseconds: decode, queue, infer, post (the slowest image's) and total.",
        "schema": {"type": "string"},
    },
}
CLIENT_ID_PARAMETER: Final = {
    "name": "X-Client-Id",
    "in": "header",
    "description": (
        "Who the client is, the same in all its requests, 1 to 128 of `A-Za-z0-9._:-`. While a new version is tried on "
        "some clients, one with an id meets it for as long as that lasts; one without keeps the serving version."
    ),
    "schema": {"type": "string"},
}
_RESPONSES: Final = {
    **answer("At least one image was answered.", DetectAnswer, **_HEADERS),
    **problems(400, 404, 408, 413, 415, 422, 429, 500, 503, 504),
}
_DESCRIPTION: Final = (
    "Several images of one request run at the same time. Each has its results or its own `error`; the status is 200 "
    "when at least one succeeded, else that of the first. All results of one answer come from the one version that "
    "`metadata` names."
)


def _documentation(operation_id: str, summary: str, *parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        "summary": summary,
        "description": _DESCRIPTION,
        "operation_id": operation_id,
        "openapi_extra": {
            "parameters": [*parameters, *OPTIONS, REQUEST_ID_PARAMETER, CLIENT_ID_PARAMETER, TIMEOUT_PARAMETER],
            "requestBody": _BODY,
            "responses": _RESPONSES,
        },
    }


DETECT_FIRST: Final = _documentation("detectFirst", "Find objects with the first model")
DETECT: Final = _documentation("detect", "Find objects with one model", MODEL_PARAMETER)
SCHEMAS: Final[list[type[BaseModel]]] = [DetectAnswer, DetectRequest]
