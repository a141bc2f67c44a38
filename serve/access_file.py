"""The keys in force in this process: read from the access file, and again whenever it changes.

A Kubernetes Secret changes by a symbolic link that points elsewhere, an editor may write a file in place within one
tick of its clock: so what is compared is the content, a few kilobytes once a second. Nothing that happens to the file
opens the service: where it is damaged or gone, the last good keys stay in force.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from serve.access import AccessKey, AccessKeys, Scope, digest_of
from serve.access_document import AccessFileError, parse, read
from serve.instruments import Metric
from serve.settings import is_loopback

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path
    from typing import Self

    from serve.instruments import MetricsSink
    from serve.settings import Settings

    _Found = tuple[bytes | None, tuple[AccessKey, ...] | AccessFileError]

PERIOD_S: Final = 1.0
"""Time between two looks at the file (seconds)."""
LOOK_DEADLINE_S: Final = 5.0
"""Time after which a look that has not ended is reported (seconds); the next one waits for it."""
SETTINGS_KEY: Final = "admin_key"
"""Id of the key that the setting of that name is."""

FILE_GOOD: Final = Metric("steelyard_access_file_good", "1 where the access file could be read, 0 where not.", ())
KEYS: Final = Metric("steelyard_access_keys", "Keys of the access file that are in force.", ())

STAY: Final = "the last good keys stay in force"
GONE: Final = f"the access file is gone; {STAY}"
SLOW: Final = f"the access file does not answer; {STAY}"

_log = logging.getLogger(__name__)


class AccessFile:
    """One access file, as this process last understood it. ``keys`` belongs to the event loop's thread."""

    def __init__(
        self,
        path: Path,
        *,
        demanded: bool,
        other: AccessKey | None = None,
        local: Sequence[AccessKey] = (),
        sink: MetricsSink | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Read nothing yet.

        demanded: keys are in force even where there never was a file. other: see ``AccessKeys``. local: keys beside
        those of the file. sink: where metrics go.
        """
        self._path, self._other, self._local, self._sleep = path, other, tuple(local), sleep
        self._keys = AccessKeys(self._local, other=other) if demanded else None
        self._content: bytes | None = None
        self._damage: str | None = None
        self._note: str | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="access")
        self._look: asyncio.Future[_Found] | None = None
        self._good = sink.gauge(FILE_GOOD) if sink is not None else None
        self._count = sink.gauge(KEYS) if sink is not None else None

    @classmethod
    def of(cls, settings: Settings, *, local: Sequence[AccessKey] = (), sink: MetricsSink | None = None) -> Self:
        """Return the access file of ``settings``, unread."""
        return cls(
            settings.access_path, demanded=keys_demanded(settings), other=key_of(settings), local=local, sink=sink
        )

    @property
    def keys(self) -> AccessKeys | None:
        """Return the keys in force; None where none are, which ends with the first access file that is seen."""
        return self._keys

    @property
    def note(self) -> str | None:
        """Return what is wrong with the file, without its path, or None."""
        return self._note

    def load(self) -> None:
        """Read the file for the first time; blocks."""
        try:
            found = self._found()
        except AccessFileError as error:
            self._refuse(str(error))
        else:
            self._take(found)

    async def watch(self) -> None:
        """Follow the file until cancelled; call it once."""
        try:
            while True:
                await self.look()
                await self._sleep(PERIOD_S)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def look(self) -> None:
        """Take over what the file holds now; returns after LOOK_DEADLINE_S at the latest."""
        if self._look is None:
            # Parsing thousands of keys takes a moment, too.
            self._look = asyncio.get_running_loop().run_in_executor(self._thread, self._found)
        done, _ = await asyncio.wait({self._look}, timeout=LOOK_DEADLINE_S)
        if not done:
            self._tell(SLOW)
            return
        look, self._look = self._look, None
        try:
            found = look.result()
        except AccessFileError as error:
            self._refuse(str(error))
        else:
            self._take(found)

    def _found(self) -> _Found:
        content = read(self._path)
        if content is None or content == self._content:
            return content, ()
        try:
            return content, parse(content)
        except AccessFileError as error:
            return content, error

    def _take(self, found: _Found) -> None:
        content, keys = found
        if content is None:
            self._content = self._damage = None
            if self._keys is not None:
                self._tell(GONE)
            return
        if content == self._content:
            self._tell(self._damage)
            return
        if isinstance(keys, AccessFileError):
            self._refuse(str(keys), content)
            return
        self._content, self._damage = content, None
        self._keys = AccessKeys((*keys, *self._local), other=self._other)
        if self._count is not None:
            self._count.set({}, float(len(keys)))
        _log.info("%d keys of the access file are in force", len(keys))
        self._tell(None)

    def _refuse(self, why: str, content: bytes | None = None) -> None:
        """Keep the keys; without any, let nobody in but whom the settings name."""
        self._content, self._damage = content, f"{why}; {STAY}"
        if self._keys is None:
            self._keys = AccessKeys(self._local, other=self._other)
        self._tell(self._damage)

    def _tell(self, note: str | None) -> None:
        if note is not None and note != self._note:
            _log.error("%s", note)
        elif note is None and self._note is not None:
            _log.info("the access file is good again")
        self._note = note
        if self._good is not None:
            self._good.set({}, float(note is None))


def keys_demanded(settings: Settings) -> bool:
    """Return whether keys are in force even where there is no access file."""
    return settings.access_file is not None or not is_loopback(settings.host)


def key_of(settings: Settings) -> AccessKey | None:
    """Return the key that the setting ``admin_key`` is, or None."""
    if settings.admin_key is None:
        return None
    digest = digest_of(settings.admin_key.get_secret_value())
    return AccessKey(SETTINGS_KEY, SETTINGS_KEY, digest, frozenset({Scope.ADMIN}), 0.0)
