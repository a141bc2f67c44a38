"""Whether a service may start with the keys that there are: beyond loopback nobody gets in by oversight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.errors import SettingsError
from serve.access import Scope
from serve.access_document import read_keys
from serve.settings import is_loopback

if TYPE_CHECKING:
    from serve.settings import Settings


def check_start(settings: Settings, now: float) -> None:
    """Refuse a start that would leave the service open, or shut to everybody; reads the access file, blocks.

    Beyond loopback somebody must hold the scope ``predict``, or the settings say that anybody may detect, and somebody
    the scope ``admin``, or the settings name an admin key. now: unix seconds.
    Raises SettingsError in one sentence that names the command to run.
    """
    keys = read_keys(settings.access_path)
    if keys is None and settings.access_file is not None:
        msg = (
            f"access_file={settings.access_file} does not exist: make it with `steelyard access add NAME --scope "
            "predict`, or mount it where the setting says"
        )
        raise SettingsError(msg)
    if is_loopback(settings.host):
        return
    held = {scope for key in keys or () if key.expires is None or now < key.expires for scope in key.scopes}
    if Scope.PREDICT not in held and not settings.anonymous_predict:
        msg = (
            f"host={settings.host} is not loopback and no key may detect: run `steelyard access add NAME --scope "
            "predict`, or set STEELYARD_ANONYMOUS_PREDICT=true if everybody who reaches it may, or bind 127.0.0.1"
        )
        raise SettingsError(msg)
    if Scope.ADMIN not in held and settings.admin_key is None:
        msg = (
            f"host={settings.host} is not loopback and no key may promote or roll back: run `steelyard access add NAME "
            "--scope admin`, or set STEELYARD_ADMIN_KEY, or bind 127.0.0.1"
        )
        raise SettingsError(msg)
