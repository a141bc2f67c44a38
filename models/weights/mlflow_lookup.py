"""Finds models and versions in MLflow, and says in the domain's words that there are none."""

from __future__ import annotations

from typing import Any, NoReturn

from models.errors import UnknownModelError, UnknownVersionError

_PAGE = 1000
_UNKNOWN = "RESOURCE_DOES_NOT_EXIST"


def all_pages(search: Any, **arguments: Any) -> list[Any]:
    """Return what ``search`` finds with ``arguments``, page after page."""
    found: list[Any] = []
    token = None
    while True:
        page = search(max_results=_PAGE, page_token=token, **arguments)
        found += page
        token = page.token
        if not token:
            return found


def registered_model(client: Any, model: str) -> Any:
    """Return MLflow's entity of ``model``. Raises UnknownModelError."""
    try:
        return _about(client.get_registered_model(model), model)
    except Exception as error:
        if getattr(error, "error_code", None) == _UNKNOWN:
            msg = f"The registry holds no model named {model[:64]}; register weights for it first."
            raise UnknownModelError(msg) from error
        raise


def model_version(client: Any, model: str, version: str) -> Any:
    """Return MLflow's entity of a version. Raises UnknownVersionError."""
    if not version.isdecimal():
        _no_version(model, version)
    try:
        return _about(client.get_model_version(model, version), model)
    except Exception as error:
        if getattr(error, "error_code", None) == _UNKNOWN:
            _no_version(model, version)
        raise


def _about(entity: Any, model: str) -> Any:
    # A proxy's empty 200 would pass for a model without an alias.
    if entity.name != model:
        msg = "the answer is about nothing that was asked for"
        raise ValueError(msg)
    return entity


def _no_version(model: str, version: str) -> NoReturn:
    msg = f"The registry holds no version {version[:20]} of {model}; list the versions and choose one."
    raise UnknownVersionError(msg)


def create_model(client: Any, model: str) -> None:
    """Make ``model`` known to MLflow, unless it is."""
    try:
        client.create_registered_model(model)
    except Exception as error:
        # Somebody else registered the first version of this model at the same moment.
        if getattr(error, "error_code", None) != "RESOURCE_ALREADY_EXISTS":
            raise
