"""One HTML page that holds all it shows: headings, sentences, tables and pictures, with no file and no link beside it.

The page follows the reader's light or dark setting, prints, and reads on a narrow screen: wide tables scroll within
themselves.
"""

import base64
import contextlib
import html
import itertools
from collections.abc import Iterable, Iterator, Mapping

from nc_jax.study.tables import Table

LONG = 24  # letters of a cell of text that stays in one line
# Dashes of curves, by Matplotlib's signs, as SVG writes them.
DASHES = {"-": "", "--": "6 3", ":": "2 3", "-.": "7 2 2 2"}
PIXELS_PER_INCH, DPI = 96, 150  # of CSS, and of the pictures that `nc_jax.study.plots` draws
LEAST_SHARE = 0.6  # of its own width, to which a picture shrinks on a narrow screen: letters of 6 pixels remain

# System fonts: a page of its own may not ask a server for one.
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 68rem;
  overflow-wrap: break-word; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; } p { max-width: 44rem; }
nav ul { columns: 18rem; column-gap: 2.5rem; padding-left: 1.2rem; }
figure { margin: 1rem 0; } figure img { background: white; height: auto; max-width: 100%; }
figcaption, caption { color: gray; max-width: min(44rem, calc(100vw - 2rem)); text-align: left; }
.wide { max-width: 100%; overflow-x: auto; }
table { border-collapse: separate; border-spacing: 0; font-variant-numeric: tabular-nums; margin: 1rem 0; }
table { min-width: min(22rem, 100%); }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem; text-align: right; vertical-align: top; }
th, td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } td.text, th.text { text-align: left; }
th:first-child, td:first-child { background: Canvas; left: 0; min-width: 7rem; position: sticky; white-space: normal; }
td.text { min-width: 6rem; white-space: normal; }
td.long { min-width: 12rem; overflow-wrap: anywhere; white-space: normal; }
.tables { align-items: flex-start; display: flex; flex-wrap: wrap; gap: 0 2.5rem; }
figure { overflow-x: auto; } summary { cursor: pointer; margin: 1rem 0; }
.panels figure { margin: 0; }
.panels { display: grid; gap: 0 1rem; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none; padding: 0; }
.legend svg { background: white; margin-right: .4rem; vertical-align: middle; }
tbody tr:hover { background: var(--soft); }
@media (max-width: 40rem) { table { font-size: .85rem; } th, td { padding: .25rem .4rem; } }
code { background: var(--soft); padding: 0 .2rem; overflow-wrap: anywhere; }
"""


class Page:
    """Collects the parts of a page in the order in which a reader meets them.

    Text is escaped: whatever a file or a class is called, it is shown and not obeyed.

    Args:
        title: title of the page.

    Example:
        >>> page = Page("A run")
        >>> page.heading("Accuracy")
        >>> page.tables([Table("Share of right answers", ["", "test"], [["<nearest>", "0.98"]])])
        >>> "&lt;nearest&gt;" in page.text() and '<h2 id="accuracy">' in page.text()
        True
    """

    def __init__(self, title: str):
        self._title, self._parts, self._contents = title, [], {}

    def heading(self, text: str) -> None:
        """Begin a part; the page's contents link to it."""
        base = "".join(c if c.isalnum() else "-" for c in text.lower())
        names = itertools.chain([base], (f"{base}-{number}" for number in itertools.count(2)))
        name = next(name for name in names if name not in self._contents)
        self._contents[name] = text
        self._parts.append(f'<h2 id="{html.escape(name)}">{html.escape(text)}</h2>')

    def subheading(self, text: str) -> None:
        """Begin a part of a part."""
        self._parts.append(f"<h3>{html.escape(text)}</h3>")

    @contextlib.contextmanager
    def folded(self, text: str) -> Iterator[None]:
        """Show what a `with` block adds only to readers who ask for it.

        Args:
            text: what it is.
        """
        self._parts.append(f"<details><summary>{html.escape(text)}</summary>")
        yield
        self._parts.append("</details>")

    def say(self, sentences: Iterable[str]) -> None:
        """Add sentences, each a paragraph."""
        self._parts += [f"<p>{html.escape(sentence)}</p>" for sentence in sentences]

    def tables(self, tables: Iterable[Table], *, text_columns: Iterable[int] = ()) -> None:
        """Add tables, beside each other where the screen has room.

        Args:
            tables: tables of any width; the page need not cut them.
            text_columns: places of columns with sentences, which stand on the left of their cells.
        """
        left = set(text_columns)
        self._parts.append('<div class="tables">')
        for table in tables:
            head = "".join(
                f"<th{' class=text' if place in left else ''}>{html.escape(name)}</th>"
                for place, name in enumerate(table.columns)
            )
            rows = "".join(
                "<tr>"
                + "".join(
                    f"<td{_class_of(cell) if place in left else ''}>{html.escape(cell)}</td>"
                    for place, cell in enumerate(row)
                )
                + "</tr>\n"
                for row in table.rows
            )
            title = f"<caption>{html.escape(table.title)}</caption>" if table.title else ""
            self._parts.append(
                f'<div class="wide"><table>{title}<thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>'
            )
        self._parts.append("</div>")

    def picture(self, data: bytes, caption: str) -> None:
        """Add a picture.

        Args:
            data: the content of a PNG or SVG file.
            caption: what it shows; also read aloud in place of the picture.
        """
        said = html.escape(caption)
        self._parts.append(f"<figure>{_image(data, caption)}<figcaption>{said}</figcaption></figure>")

    def panels(self, pictures: Mapping[str, bytes], legend: Mapping[str, tuple[str, str]]) -> None:
        """Add small pictures, as many beside each other as the screen has room for, under one legend.

        Args:
            pictures: the content of PNG or SVG files, by what they show.
            legend: colour and dash ("-", "--", ":" or "-.") of each curve, by its name.
        """
        lines = "".join(
            f'<li><svg width="36" height="10"><line x1="2" y1="5" x2="34" y2="5" stroke-width="2.5" '
            f'stroke="{html.escape(colour)}" stroke-dasharray="{DASHES[dash]}"/></svg>{html.escape(name)}</li>'
            for name, (colour, dash) in legend.items()
        )
        drawn = "".join(f"<figure>{_image(data, title)}</figure>" for title, data in pictures.items())
        self._parts.append(f'<ul class="legend">{lines}</ul><div class="panels">{drawn}</div>')

    def text(self) -> str:
        """Return the page."""
        links = "".join(f'<li><a href="#{html.escape(n)}">{html.escape(t)}</a></li>' for n, t in self._contents.items())
        contents = f"<nav><ul>{links}</ul></nav>\n" if len(self._contents) > 1 else ""
        title = html.escape(self._title)
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{contents}"
            + "\n".join(self._parts)
            + "\n</body>\n</html>\n"
        )


def _class_of(cell: str) -> str:
    """Return the class of a cell with text, which goes on in further lines if it is long."""
    return ' class="text long"' if len(cell) > LONG else ' class="text"'


def _image(data: bytes, caption: str) -> str:
    """Return the element of a picture that holds the picture itself."""
    png = data.startswith(b"\x89PNG")
    source = f"data:image/{'png' if png else 'svg+xml'};base64,{base64.b64encode(data).decode()}"
    least = ""
    if png:
        inches = int.from_bytes(data[16:20], "big") / DPI  # its width stands in the first chunk of the file
        least = f' style="min-width: {LEAST_SHARE * PIXELS_PER_INCH * inches:.0f}px"'
    return f'<img src="{source}" alt="{html.escape(caption)}"{least}>'
