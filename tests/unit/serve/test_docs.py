"""The documentation page."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import TYPE_CHECKING

from serve.docs import render

if TYPE_CHECKING:
    import httpx


class _References(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [(tag, value) for name, value in attrs if name in ("src", "href")]
        if tag == "script":
            self.found.append((tag, "inline"))


async def test_the_page_needs_nothing_from_elsewhere(client: httpx.AsyncClient) -> None:
    """It works on a machine without a network, and under the strictest policy."""
    response = await client.get("/docs")
    parser = _References()
    parser.feed(response.text)
    assert parser.found == [("a", "openapi.json")]
    assert "default-src 'none'" in response.headers["content-security-policy"]
    for text in ("/v1/models/{model}/detect", "max_det", "multipart/form-data", "invalid_option", "DetectAnswer"):
        assert text in response.text


def test_what_the_document_says_is_text() -> None:
    """A description with markup in it is shown, not run."""
    schema = {"info": {"title": "<script>", "version": "1"}, "paths": {}}
    assert "<script>" not in render(schema)
