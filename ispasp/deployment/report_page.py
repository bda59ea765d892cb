"""One HTML page that needs nothing but itself: headings, tables and plots; everything from outside is escaped."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from string import Template
from typing import Any

import plotly.graph_objects as go
import plotly.io
from plotly.offline import get_plotlyjs

from ispasp.errors import ISpaSPError
from ispasp.looks import GROUND

FAILED = "FAILED"
"""A cell with this word stands out."""

Draw = Callable[[bool], go.Figure]
"""Draws a figure for a light (False) or a dark page."""

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
$body
</main>
$scripts
</body>
</html>
""")

_STYLE = """
:root { --ink: #1b2430; --ground: $light; --quiet: #5b6675; --line: #d6dce4; --bad: #b3261e }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6ebf2; --ground: $dark; --quiet: #a3afbf; --line: #334050; --bad: #ff9d94 }
}
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
main { max-width: 72rem; margin: 0 auto; padding: 1.5rem 1rem 4rem }
p, ul, figcaption { max-width: 56rem }
h1 { font-size: 1.7rem; line-height: 1.25; overflow-wrap: anywhere; margin: 0 0 .3rem }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line) }
nav { display: flex; flex-wrap: wrap; gap: 0 1rem }
nav a { color: inherit; white-space: nowrap }
.quiet, figcaption, caption { color: var(--quiet) }
figcaption, caption { font-size: .92rem }
.bad { color: var(--bad); font-weight: 600 }
.note { white-space: pre-wrap; overflow-wrap: anywhere; border-left: 3px solid var(--line); padding-left: .8rem }
.wide { overflow-x: auto; margin: .8rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem }
caption { text-align: left; padding-bottom: .3rem }
th, td { text-align: left; vertical-align: top; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line) }
tbody th { font-weight: 500 }
tbody th, td.number { white-space: nowrap }
thead th { font-weight: 600 }
td.number, th.number { text-align: right }
th, td { overflow-wrap: break-word; max-width: 26rem }
figure { margin: 1rem 0 1.8rem; break-inside: avoid }
pre { overflow-x: auto; padding: .7rem .9rem; border: 1px solid var(--line); border-radius: 6px; font-size: .88rem }
details summary { cursor: pointer }
tr { break-inside: avoid }
@media (max-width: 40rem) { tbody th { white-space: normal } }
@media print {
  :root { --ink: #000; --ground: #fff; --quiet: #444; --line: #bbb; --bad: #b3261e }
  nav { display: none }
  main .wide { overflow: visible }
  main table { font-size: .68rem }
  main th, main td { padding-right: .4rem; overflow-wrap: anywhere }
  tbody th, td.number { white-space: normal }
}
"""

_DRAWING = """
const look = window.matchMedia("(prefers-color-scheme: dark)");
function draw(dark) {
  for (const [place, pair] of Object.entries(FIGURES)) {
    const figure = structuredClone(pair[dark ? 1 : 0]);
    figure.layout.template = TEMPLATES[dark ? 1 : 0];
    Plotly.react(place, figure.data, figure.layout, {responsive: true, displayModeBar: false});
  }
}
draw(look.matches);
look.addEventListener("change", () => draw(look.matches));
window.addEventListener("beforeprint", () => draw(false));
window.addEventListener("afterprint", () => draw(look.matches));
"""

_NUMBER = re.compile(r"[−+-]?[\d,.]+(e[+-]?\d+)?( %| ?×| [kMG]?B| ms| points| [kMG]| to [\d.]+)?|–")
_LINK = re.compile(r"\\u003c(?=\s*a\b)", re.IGNORECASE)


class Page:
    """Sections in the order in which they are added."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.parts = [f"<h1>{escape(title)}</h1>"]
        self.figures: dict[str, list[Any]] = {}
        self.headings: list[tuple[str, str]] = []

    def heading(self, words: str) -> None:
        """Begin a section."""
        anchor = re.sub(r"\W+", "-", words.lower())
        self.headings.append((anchor, words))
        self.parts.append(f'<h2 id="{escape(anchor)}">{escape(words)}</h2>')

    def text(self, words: str, kind: str = "") -> None:
        """A paragraph; ``kind`` is empty, ``"quiet"``, ``"bad"`` or ``"note"``, which keeps its lines."""
        self.parts.append(f"<p{_class(kind)}>{escape(words)}</p>")

    def bullets(self, lines: Iterable[str]) -> None:
        """A list, if there is anything to list."""
        if items := "".join(f"<li>{escape(line)}</li>" for line in lines):
            self.parts.append(f"<ul>{items}</ul>")

    def code(self, words: str) -> None:
        """A command."""
        self.parts.append(f"<pre><code>{escape(words)}</code></pre>")

    def table(self, caption: str, rows: Sequence[dict[str, str]], folded: str = "") -> None:
        """Rows under the heads of the first of them; the first column names the row. Every cell is text.

        Args:
            folded: words to press for a long table; it is shown at once without any.
        """
        if not rows:
            return
        heads = list(rows[0])
        right = {
            head
            for head in heads[1:]
            if all(_NUMBER.fullmatch(row[head]) for row in rows if row[head])
            and any(row[head] for row in rows)
        }

        def cell(tag: str, head: str, words: str, scope: str = "") -> str:
            kind = "bad" if words == FAILED else "number" if head in right else ""
            return f"<{tag}{_class(kind)}{scope}>{escape(words)}</{tag}>"

        top = "".join(cell("th", head, head, ' scope="col"') for head in heads)
        body = "".join(
            "<tr>"
            + cell("th", heads[0], row[heads[0]], ' scope="row"')
            + "".join(cell("td", head, row[head]) for head in heads[1:])
            + "</tr>"
            for row in rows
        )
        made = (
            f'<div class="wide"><table><caption>{escape(caption)}</caption>'
            f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
        )
        self.parts.append(f"<details><summary>{escape(folded)}</summary>{made}</details>" if folded else made)

    def figure(self, caption: str, draw: Draw) -> None:
        """A plot, which the page draws when it is opened; what it shows should stand in a table as well."""
        pair = [draw(dark) for dark in (False, True)]
        place = f"figure-{len(self.figures)}"
        for figure, dark in zip(pair, (False, True), strict=True):
            figure.update_layout(template=None, paper_bgcolor=GROUND[dark], plot_bgcolor=GROUND[dark])
            figure.update_layout(font_family="system-ui, sans-serif")
            figure.update_yaxes(
                ticks="outside", ticklen=5, tickcolor="rgba(0,0,0,0)"
            )  # names clear of the bars
        self.figures[place] = pair
        height = int(pair[0].layout.height or 300)
        self.parts.append(
            f'<figure><div id="{place}" role="img" aria-label="{escape(caption)}" style="min-height:{height}px"></div>'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def attempt(self, fill: Callable[[], None]) -> str:
        """Add what ``fill`` adds, or nothing where it finds that a file does not hold what it should.

        Returns:
            What is wrong, in a few words; empty where nothing is.
        """
        parts, figures, headings = len(self.parts), dict(self.figures), len(self.headings)
        try:
            fill()
        except (ISpaSPError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            del self.parts[parts:], self.headings[headings:]
            self.figures = figures
            return str(error) if isinstance(error, ISpaSPError) else repr(error)[:200]
        return ""

    def html(self) -> bytes:
        """The page, UTF-8; plotly.js, about 4.7 MB, is in it where there is a figure."""
        links = "".join(f'<a href="#{escape(anchor)}">{escape(words)}</a>' for anchor, words in self.headings)
        begin, *rest = self.parts
        body = [begin, f'<nav aria-label="Contents">{links}</nav>', *rest]
        scripts = ""
        if self.figures:
            body.append(
                "<noscript><p>The figures need JavaScript; their numbers stand in the tables.</p></noscript>"
            )
            values = ",".join(
                f'"{place}":[{",".join(map(_json, pair))}]' for place, pair in self.figures.items()
            )
            scripts = (
                f"<script>{get_plotlyjs()}</script>\n"
                f"<script>const TEMPLATES = {_templates()};\nconst FIGURES = {{{values}}};\n{_DRAWING}</script>"
            )
        style = Template(_STYLE).substitute(light=GROUND[False], dark=GROUND[True])
        page = _PAGE.substitute(title=escape(self.title), style=style, body="\n".join(body), scripts=scripts)
        return page.encode("utf-8", errors="replace")


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _json(figure: go.Figure) -> str:
    """A figure as JavaScript: no tag of it ends the script, and none of its labels is a link."""
    text = figure.to_json().replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return _LINK.sub("&lt;", text)


@functools.cache
def _templates() -> str:
    """Plotly's own light and dark looks, once for all figures."""
    layouts = [plotly.io.templates[name].layout.to_plotly_json() for name in ("plotly_white", "plotly_dark")]
    return json.dumps([{"layout": each} for each in layouts]).replace("<", "\\u003c")
