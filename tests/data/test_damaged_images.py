"""Damaged folders of images: images of the right shape, or a sentence that names the file, at load or at take."""

import io
import shutil

import hypothesis
import hypothesis.strategies as st
import numpy as np
import PIL.Image
import pytest
from prepared import encoded, smooth

from nc_jax.data import folders

SIZE = 8


def _stored(image, file_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def _whole():
    """A file of every kind, by its name."""
    colour, clear = smooth(24, 30), np.dstack([smooth(20, 20), np.full((20, 20), 90, np.uint8)])
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    frames = [PIL.Image.fromarray(smooth(12, 12, turn=turn)) for turn in (0.0, 1.0)]
    film = {"save_all": True, "append_images": frames[1:]}
    return {
        "a.png": encoded(colour, "png"),
        "b.jpg": encoded(colour, "jpeg"),
        "c.jpg": _stored(PIL.Image.fromarray(colour), "jpeg", exif=exif),
        "d.png": _stored(PIL.Image.fromarray(clear), "png"),
        "e.png": _stored(PIL.Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30) * 70), "png"),
        "f.gif": _stored(frames[0], "gif", **film),
        "g.tif": _stored(frames[0], "tiff", compression="tiff_lzw", **film),
        "h.webp": encoded(colour, "webp"),
        "i.bmp": encoded(colour, "bmp"),
        "j.ppm": encoded(colour, "ppm"),
        "k.png": _stored(PIL.Image.fromarray(colour).quantize(8), "png", transparency=1),
        "l.jpg": encoded(colour, "jpeg", "CMYK"),
    }


WHOLE = _whole()
Bytes = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.integers(0, 200), st.integers(0, 7)),  # most of these hit the header
        st.tuples(st.just("flip"), st.integers(0, 20_000), st.integers(0, 7)),
        st.tuples(st.just("cut"), st.integers(0, 3000), st.integers(1, 3000)),
        st.tuples(st.just("fill"), st.integers(0, 200), st.binary(min_size=1, max_size=8)),
    ),
    min_size=1,
    max_size=4,
)
Damage = st.one_of(
    st.tuples(st.just("bytes"), Bytes),
    st.tuples(st.just("bytes later"), Bytes),
    st.tuples(st.sampled_from(["folder", "no file", "link to itself", "link above", "gone later", "empty"]), st.none()),
    st.tuples(st.just("renamed"), st.sampled_from([".jpg", ".png", ".tif", ".webp", ".heic", ""])),
)


def changed(data, changes):
    """Return the bytes of a file after some changes."""
    for kind, where, what in changes:
        if kind == "cut":
            data = data[:where] + data[where + what :]
        elif kind == "fill":
            data = data[:where] + what + data[where + len(what) :]
        elif data:
            where %= len(data)
            data = data[:where] + bytes([data[where] ^ 1 << what]) + data[where + 1 :]
    return data


def damage(path, kind, detail):
    """Damage the file before the folder is loaded."""
    if kind == "bytes":
        path.write_bytes(changed(path.read_bytes(), detail))
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "renamed":
        path.rename(path.with_suffix(detail))
    elif kind in ("folder", "no file", "link to itself", "link above"):
        path.unlink()
        if kind == "folder":
            path.mkdir()
        else:
            path.symlink_to({"no file": "nothing", "link to itself": path.name, "link above": ".."}[kind])


def check(root, name, kind, detail):
    """Damage one of two files; return whether the other one, or both, became images."""
    shutil.rmtree(root, ignore_errors=True)
    for label in ("one", "two"):
        (root / "train" / label).mkdir(parents=True)
        (root / "train" / label / "whole.png").write_bytes(WHOLE["a.png"])
    path = root / "train" / "two" / name
    path.write_bytes(WHOLE[name])
    damage(path, kind, detail)
    try:
        source = folders.load(root, "train")
        if kind == "bytes later":
            path.write_bytes(changed(path.read_bytes(), detail))
        elif kind == "gone later":
            path.unlink()
        batch = source.cropped(SIZE).take(np.arange(len(source)))
    except ValueError as error:
        said = str(error)
    else:
        assert (batch.inputs.shape, batch.inputs.dtype) == ((len(source), SIZE, SIZE, 3), np.uint8)
        assert len(source) == (2 if kind == "renamed" and detail in (".heic", "") else 3)
        return True
    assert said.startswith(f"image {path} must be ")
    assert len(said.splitlines()) == 1
    return False


@pytest.mark.parametrize("name", WHOLE)
def test_whole_files_are_images(name, tmp_path):
    assert check(tmp_path / "set", name, "renamed", name[1:])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # of PIL, about what it forgives
def test_a_thousand_damaged_folders_are_images_or_a_sentence(tmp_path):
    outcomes = []

    @hypothesis.settings(max_examples=1000)
    @hypothesis.given(st.sampled_from(sorted(WHOLE)), Damage)
    def read(name, kind):
        outcomes.append(check(tmp_path / "set", name, *kind))

    read()
    assert len(outcomes) >= 1000
    assert min(outcomes.count(True), outcomes.count(False)) > 100, "both kinds were met"
