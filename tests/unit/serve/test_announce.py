"""What the person who started the service reads."""

import io
import shlex
from pathlib import Path

from models import demo
from serve.announce import Announcer, curl


def test_the_curl_line_names_an_existing_tray_and_works_as_pasted(tmp_path: Path) -> None:
    """From a folder elsewhere the path is absolute, from a folder above it is short."""
    far = shlex.split(curl("http://127.0.0.1:8000", tmp_path))
    near = shlex.split(curl("http://127.0.0.1:8000", demo.SAMPLE_TRAY.parents[2]))
    assert far[3] == f"@{demo.SAMPLE_TRAY}"
    assert near[3] == "@" + str(demo.SAMPLE_TRAY.relative_to(demo.SAMPLE_TRAY.parents[2]))
    assert far[-1] == "http://127.0.0.1:8000/v1/detect"


def test_the_curl_line_takes_the_key_from_the_environment(tmp_path: Path) -> None:
    """Where keys are in force; none is ever printed."""
    keyed = curl("http://127.0.0.1:8000", tmp_path, with_key=True)
    assert '-H "X-Api-Key: $STEELYARD_API_KEY"' in keyed
    assert "X-Api-Key" not in curl("http://127.0.0.1:8000", tmp_path)


def test_the_address_goes_to_one_stream_and_notes_to_the_other() -> None:
    """What a script reads is not mixed with what a person reads."""
    out, notes = io.StringIO(), io.StringIO()
    announcer = Announcer(out, notes)
    announcer.say("starting [Ray]")
    announcer.progress("convert", 0.5)
    announcer.clear()
    announcer.ready("http://127.0.0.1:8000", ["checkout version 2"], 14.4)
    assert notes.getvalue() == "starting [Ray]\n"
    first, second, *_ = out.getvalue().splitlines()
    assert first == "Steelyard serves checkout version 2 at http://127.0.0.1:8000 (ready after 14 s; Ctrl-C stops it)"
    assert second == "Try it:"
