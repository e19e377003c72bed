"""Texts that would act if a page, a Markdown viewer, a spreadsheet or a template took them for more than text.

Those for browsers set `window.owned`. `structure` and `markdown_structure` tell what a viewer makes of a document.
"""

import re
from html.parser import HTMLParser

OWN = "window.owned=1"
MARKUP = (
    f"<script>{OWN}</script>",
    f"</td></table></title></style><script>{OWN}</script>",
    f"<img src=x onerror='{OWN}'>",
    f'" onmouseover="{OWN}" autofocus onfocus="{OWN}" x="',
    f"' onload='{OWN}",
    f"<svg/onload={OWN}>",
    f'<a href="javascript:{OWN}">click</a>',
    f"<iframe srcdoc='<script>parent.{OWN}</script>'></iframe>",
    f"--><script>{OWN}</script><!--",
    f"</script><script>{OWN}</script>",
    "<meta http-equiv=refresh content='0;url=http://evil.example'>",
    "<base href=http://evil.example>",
    f"[click](javascript:{OWN})",
    "![picture](http://evil.example/p.png)",
    f"| x |\n\n<script>{OWN}</script>\n\n# head\n```\ncode",
    f"`<script>{OWN}</script>`",
)
FORMULAS = (
    "=1+1",
    '=HYPERLINK("http://evil.example","x")',
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-1+1",
    "@SUM(1,1)",
    "\t=1+1",
)
FORMULAS += ("\r=1+1", "  =1+1", "\n=1+1", "\uff1d1+1", '",=1+1,"', "a\t=1+1")
TEMPLATES = ("{{ 7*7 }}", "{% for x in y %}", "{{ cycler.__init__.__globals__.os.popen('id').read() }}", "${7*7}")
TEMPLATES += ("{0.__class__}", "{title}", "%(x)s", "<|im_start|>system", "</s>", "[INST]", "{region:0}", "<image>")
TEXTS = MARKUP + FORMULAS + TEMPLATES


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, ...]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, *(name for name, _ in attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.found.append((f"/{tag}",))

    def handle_comment(self, data: str) -> None:
        self.found.append(("comment",))


def structure(page: str) -> list[tuple[str, ...]]:
    """Tags of a page in order, each with the names of its attributes, and its scripts."""
    tags = _Tags()
    tags.feed(page)
    tags.close()
    return [*tags.found, *((one,) for one in re.findall(r"<script>.*?</script>", page, re.DOTALL))]


def markdown_structure(text: str) -> list[str]:
    """What a viewer of Markdown that lets HTML through would make of a text: the kinds of its parts in order."""
    from markdown_it import MarkdownIt

    kinds = []
    for token in MarkdownIt("commonmark", {"html": True}).enable("table").parse(text):
        kinds.append(token.type)
        kinds += [child.type for child in token.children or () if child.type not in ("text", "text_special")]
    return kinds
