"""A report as a parser sees it, and texts that try to break out of it."""

from html.parser import HTMLParser

HOSTILE = "</pre></style>\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}&amp;"
VOID = {"meta", "wbr", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.texts, self.elements = [], [], [], []
        self._open, self.unbalanced = [], []
        self.feed(html.replace("<wbr>", ""))
        self.unbalanced += self._open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        if not self._open or self._open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, text):
        self.texts.append(text)

    def all(self, tag):
        """The attributes of all elements of that name."""
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def assert_harmless(page):
    """Nothing of a page is run, loaded, or leads elsewhere."""
    assert not {"script", "link", "img", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on"), name
        if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert value.startswith(("#", "runs/")), value
        assert "://" not in (value or "") or name == "aria-label", (name, value)


def without_curves(root):
    """Drawing takes most of the time; a test of something else needs none of it."""
    for path in (root / "reports").glob("*/curve.csv"):
        path.unlink()
