"""Look at HTML pages with Chromium: how wide they are in a narrow window, and what their scripts complain of.

Pages are served by this process on the loopback interface, because scripts may not look into pages of another origin,
which files are. One page of ours loads all of them, one after the other, into a frame of a given width.
"""

import functools
import http.server
import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",  # what scripts complain of
)
PATIENCE = 300  # seconds for all pages; sixty of them take twenty on two CPU cores

# The width at which a page is shown, and that which it takes up: more than that is a page that scrolls sideways.
LOOK = """<!doctype html><meta charset="utf-8"><title>look</title><script>
async function look(path, width) {
  const frame = document.createElement("iframe");
  Object.assign(frame, {width, height: 800, src: "/" + path});
  const loaded = new Promise(resolve => frame.addEventListener("load", resolve));
  document.body.append(frame);
  await loaded;
  const {contentWindow: view, contentDocument: page} = frame;
  await view.MathJax?.startup?.promise;
  const shown = page.scrollingElement.clientWidth;
  const beyond = part => part.getBoundingClientRect().left + Math.max(part.offsetWidth, part.scrollWidth) > shown + 1;
  const wide = [...page.querySelectorAll("body *")].filter(part => beyond(part)
    && ![...ancestors(part)].some(outer => scrolls(view, outer)));
  const pictures = [...page.images].filter(image => image.complete && !image.naturalWidth).map(image => image.src);
  const found = {path, shown, taken: page.scrollingElement.scrollWidth, title: page.title, pictures,
    wide: wide.slice(0, 5).map(part => part.outerHTML.slice(0, 120)), text: page.body.innerText.length};
  frame.remove();
  return found;
}
function* ancestors(part) { for (let outer = part; outer; outer = outer.parentElement) yield outer; }
function scrolls(view, part) { return ["auto", "scroll", "hidden"].includes(view.getComputedStyle(part).overflowX); }
addEventListener("load", async () => {
  const asked = await (await fetch("/asked")).json(), found = [];
  for (const path of asked.paths) found.push(await look(path, asked.width));
  await fetch("/found", {method: "POST", body: JSON.stringify(found)});
});
</script><body></body>"""


class Seen(NamedTuple):
    """What a page looks like in a window.

    Attributes:
        path: path of the page below the folder.
        shown: width of the window in pixels, without a scroll bar.
        taken: width of what the page holds; larger than `shown` if the page scrolls sideways.
        title: title of the page.
        pictures: addresses of pictures that could not be shown.
        wide: the first parts that reach beyond the window, as HTML.
        text: number of characters that can be read.
    """

    path: str
    shown: int
    taken: int
    title: str
    pictures: list[str]
    wide: list[str]
    text: int


def find() -> str | None:
    """Return the path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def look(folder: Path, paths: Sequence[str], *, width: int) -> tuple[list[Seen], list[str]]:
    """Show pages of a folder in a window of a width.

    Args:
        folder: folder that is served.
        paths: paths of the pages below it.
        width: width of the window in pixels.

    Returns:
        What was seen of each page, and what the browser's console says: errors of scripts, files that are missing.

    Raises:
        TimeoutError: if the browser does not answer.
    """
    answer, come = [], threading.Event()
    handler = functools.partial(_Handler, {"paths": list(paths), "width": width}, answer, come, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, tempfile.TemporaryDirectory() as profile:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with _browser(f"http://127.0.0.1:{server.server_port}/look", profile) as said:
            if not come.wait(PATIENCE):
                raise TimeoutError(f"Chromium must answer within {PATIENCE} s; it said: {said()[-2000:]}")
            console = [line for line in said().splitlines() if ":CONSOLE" in line]
        server.shutdown()
    return [Seen(**found) for found in answer], console


@contextmanager
def _browser(address: str, profile: str) -> Iterator:
    path = find()
    assert path is not None
    log = Path(profile) / "log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [path, *FLAGS, f"--user-data-dir={profile}/data", address], stdout=subprocess.DEVNULL, stderr=errors
        )
        try:
            yield lambda: log.read_text(encoding="utf-8", errors="replace")
        finally:
            process.terminate()
            process.wait()


class _Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, asked, answer, come, *arguments, **keywords):
        self.asked, self.answer, self.come = asked, answer, come
        super().__init__(*arguments, **keywords)

    def do_GET(self):
        own = {"/look": (LOOK, "text/html"), "/asked": (json.dumps(self.asked), "application/json")}
        if self.path not in own:
            super().do_GET()
            return
        text, kind = own[self.path]
        self._send(text.encode(), kind)

    def do_POST(self):
        self.answer += json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._send(b"", "text/plain")
        self.come.set()

    def _send(self, content, kind):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass
