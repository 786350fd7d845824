"""HTML from notebooks, made safe to keep: nothing in it runs, and nothing in it is loaded from elsewhere."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser

DROPPED = {"script", "iframe", "object", "embed", "base", "meta", "link", "form", "noscript", "template"}
VOID = {"area", "br", "col", "hr", "img", "input", "source", "track", "wbr"}
RENAMED = {"h1": "h2"}  # a page has one h1, and it is the report's
LOADING = {"src", "srcset", "poster", "background", "data", "action", "formaction", "xlink:href"}
_ELSEWHERE = re.compile(r"url\(\s*['\"]?\s*(?!#|data:)[^)]*\)|@import[^;]*;?|expression\(", re.IGNORECASE)
_LINK = re.compile(r"^(https?:|mailto:|#|[^:/?#]*([/?#]|$))", re.IGNORECASE)
_INLINE = re.compile(r"^(data:image/|#)", re.IGNORECASE)


def safe_html(text: str, *, label: str = "") -> str:
    """The same HTML without scripts, event handlers, and anything a browser would fetch.

    Tables get a frame that scrolls by keyboard and, where they have none, ``label`` as a hidden caption.
    """
    parser = _Safe(label)
    parser.feed(text)
    parser.close()
    return "".join(parser.out)


class _Safe(HTMLParser):
    def __init__(self, label: str) -> None:
        super().__init__(convert_charrefs=False)
        self.out: list[str] = []
        self._label = label
        self._dropping = ""
        self._depth = 0
        self._tables = 0
        self._caption_due = False
        self._style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._dropping:
            self._depth += tag == self._dropping
            return
        if tag in DROPPED:
            if tag not in VOID and tag not in ("base", "meta", "link", "embed"):
                self._dropping, self._depth = tag, 1
            return
        self._caption(tag)
        if tag == "table":
            self._tables += 1
            if self._tables == 1:
                name = html.escape(self._label or "table", quote=True)
                self.out.append(f'<div class="scroll" tabindex="0" role="group" aria-label="{name}">')
            self._caption_due = bool(self._label)
        self._style = tag == "style"
        if tag == "img":
            self.out.append(_image(attrs))
            return
        self.out.append(f"<{RENAMED.get(tag, tag)}{''.join(_attribute(tag, k, v) for k, v in attrs)}>")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._dropping:
            self._depth -= tag == self._dropping
            if not self._depth:
                self._dropping = ""
            return
        if tag in VOID or tag in DROPPED:
            return
        self._caption("")
        self._style = False
        self.out.append(f"</{RENAMED.get(tag, tag)}>")
        if tag == "table" and self._tables:
            self._tables -= 1
            if not self._tables:
                self.out.append("</div>")

    def _caption(self, next_tag: str) -> None:
        if self._caption_due and next_tag != "caption":
            self.out.append(f'<caption class="hidden">{html.escape(self._label)}</caption>')
        self._caption_due = False

    def handle_data(self, data: str) -> None:
        if not self._dropping:
            self.out.append(_ELSEWHERE.sub("", data) if self._style else data)

    def handle_entityref(self, name: str) -> None:
        self.handle_data(f"&{name};")

    def handle_charref(self, name: str) -> None:
        self.handle_data(f"&#{name};")


def _image(attrs: list[tuple[str, str | None]]) -> str:
    """The image with its alternative text; that text alone where the image would have to be fetched."""
    given = dict(attrs)
    alt = given.get("alt") or ""
    if not _INLINE.match((given.get("src") or "").strip()):
        return html.escape(alt)
    rest = "".join(_attribute("img", k, v) for k, v in attrs if k != "alt")
    return f'<img alt="{html.escape(alt, quote=True)}"{rest}>'


def _attribute(tag: str, key: str, value: str | None) -> str:
    if key.startswith("on") or key == "srcdoc":
        return ""
    if value is None:
        return f" {key}"
    text = value.strip()
    if key in LOADING and not _INLINE.match(text):
        return ""
    if key == "href" and not (_LINK.match(text) if tag == "a" else text.startswith("#")):
        return ""
    if key == "style":
        value = _ELSEWHERE.sub("", value)
    return f' {key}="{html.escape(value, quote=True)}"'
