"""One HTML page that holds all it shows: headings, sentences, tables and pictures, with no file and no link beside it.

The page follows the reader's light or dark setting, prints, and reads on a narrow screen: wide tables scroll within
themselves.
"""

import base64
import html
from collections.abc import Iterable

from nc_jax.study.tables import Table

# System fonts: a page of its own may not ask a server for one.
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 68rem;
  overflow-wrap: break-word; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; } p { max-width: 44rem; }
nav ul { columns: 18rem; padding-left: 1.2rem; }
figure { margin: 1rem 0; } figure img { background: white; height: auto; max-width: 100%; }
figcaption, caption { color: gray; max-width: 44rem; text-align: left; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; } td.text { text-align: left; min-width: 14rem; }
tbody tr:hover { background: var(--soft); }
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
        name = base = "".join(c if c.isalnum() else "-" for c in text.lower())
        while name in self._contents:
            name = f"{base}-{len(self._contents)}"
        self._contents[name] = text
        self._parts.append(f'<h2 id="{html.escape(name)}">{html.escape(text)}</h2>')

    def say(self, sentences: Iterable[str]) -> None:
        """Add sentences, each a paragraph."""
        self._parts += [f"<p>{html.escape(sentence)}</p>" for sentence in sentences]

    def tables(self, tables: Iterable[Table], *, text_columns: Iterable[int] = ()) -> None:
        """Add tables.

        Args:
            tables: tables of any width; the page need not cut them.
            text_columns: places of columns with sentences, which stand on the left of their cells.
        """
        left = set(text_columns)
        for table in tables:
            head = "".join(f"<th>{html.escape(name)}</th>" for name in table.columns)
            rows = "".join(
                "<tr>"
                + "".join(
                    f"<td{' class=text' if place in left else ''}>{html.escape(cell)}</td>"
                    for place, cell in enumerate(row)
                )
                + "</tr>\n"
                for row in table.rows
            )
            title = f"<caption>{html.escape(table.title)}</caption>" if table.title else ""
            self._parts.append(
                f'<div class="wide"><table>{title}<thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>'
            )

    def picture(self, data: bytes, caption: str) -> None:
        """Add a picture.

        Args:
            data: the content of a PNG or SVG file.
            caption: what it shows; also read aloud in place of the picture.
        """
        kind = "png" if data.startswith(b"\x89PNG") else "svg+xml"
        source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        said = html.escape(caption)
        self._parts.append(f'<figure><img src="{source}" alt="{said}"><figcaption>{said}</figcaption></figure>')

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
