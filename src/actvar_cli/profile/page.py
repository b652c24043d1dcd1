"""The pieces of a page that needs nothing but itself: style, tables, figures, pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from actvar_cli.evaluate.images import Pixels

STYLE = """
:root { --ink: #1f2933; --soft: #5f6b7a; --rule: #d0d5dd; --accent: #0f766e; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 50rem; color: var(--ink); background: #fff;
  font: 1rem/1.55 Charter, "Bitstream Charter", "Sitka Text", Cambria, Georgia, serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; border-bottom: 1px solid var(--rule); padding-bottom: .2rem; }
p { margin: .6rem 0; }
.meta, figcaption, caption, .note { color: var(--soft); font-size: .87rem; line-height: 1.45; }
.abstract { font-size: 1.07rem; margin: 1.2rem 0; padding-left: 1rem; border-left: 3px solid var(--accent); }
table { border-collapse: collapse; margin: 1rem 0; width: 100%; border-top: 2px solid var(--ink);
  border-bottom: 2px solid var(--ink); font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .4rem; }
th, td { padding: .22rem .6rem .22rem 0; text-align: right; vertical-align: baseline; }
th { font-weight: 600; }
thead th { border-bottom: 1px solid var(--ink); }
th:first-child, td:first-child { text-align: left; white-space: pre-wrap; }
tr.best td { font-weight: 600; }
figure { margin: 1.4rem 0; }
figure > img { width: 100%; height: auto; display: block; }
figcaption { margin-top: .5rem; }
table.pictures { border: 0; margin: 0; table-layout: fixed; }
table.pictures th { border: 0; text-align: left; }
table.pictures td, table.pictures th { padding: .1rem .5rem .1rem 0; vertical-align: middle; text-align: left;
  font-size: .87rem; white-space: nowrap; }
table.pictures img { width: 100%; height: auto; display: block; image-rendering: pixelated; }
table.pictures th:first-child { width: 6rem; }
pre { background: #f6f7f9; border: 1px solid var(--rule); padding: .8rem 1rem; overflow-x: auto; font-size: .82rem;
  line-height: 1.4; white-space: pre-wrap; overflow-wrap: anywhere; }
code { font-size: .9em; }
table.plain td { text-align: left; font-size: .87rem; overflow-wrap: anywhere; }
table.plain td:first-child { width: 11rem; color: var(--soft); }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  figure, table, .abstract { break-inside: avoid; }
  h2 { break-after: avoid; }
  pre { white-space: pre-wrap; }
}
"""


class Numbering:
    """Numbers figures and tables in the order in which they appear."""

    def __init__(self) -> None:
        self.figures = self.tables = 0

    def figure(self, body: str, caption: str) -> str:
        """A figure around ``body`` (HTML) with a numbered caption (text)."""
        self.figures += 1
        return f"<figure>{body}<figcaption>Figure {self.figures}. {escape(caption)}</figcaption></figure>"

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
        """A table with a numbered caption; cells are text."""
        self.tables += 1
        head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        return (
            f"<table><caption>Table {self.tables}. {escape(caption)}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )


def pairs_table(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values without a header."""
    body = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows)
    return f'<table class="plain"><tbody>{body}</tbody></table>'


def svg_image(svg: str, alt: str) -> str:
    """An SVG as an image of its own, so that its ids and style cannot meet those of another."""
    return f'<img alt="{escape(alt)}" src="data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}">'


def png_image(pixels: Pixels, alt: str) -> str:
    """Pixels (H, W, 3) as an embedded PNG."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png")
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def page(title: str, body: str) -> str:
    """The whole document."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )
