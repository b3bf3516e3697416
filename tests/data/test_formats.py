"""Which formats are read, and that their decoders print nothing."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from vitswin_jax.core.types import UserError
from vitswin_jax.data import formats
from vitswin_jax.data.augment.transforms import TrainTransform
from vitswin_jax.data.decode import decode_image
from vitswin_jax.data.pipeline import make_train_iterator
from vitswin_jax.data.sources.open import open_source

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


def noisy(photo):
    """TIFFs that libtiff has a line about: cut data, a JPEG without tables, a directory off."""
    files = []
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        data = io.BytesIO()
        Image.fromarray(photo).save(data, "TIFF", compression=compression)
        files.append(data.getvalue()[:-2000])
        files.append(data.getvalue()[:3000] + bytes(1000) + data.getvalue()[4000:])
    return files


def test_decoders_print_nothing(photo, capfd, caplog):
    for data in noisy(photo):
        try:
            decode_image(data)
        except UserError:
            continue
    exif = io.BytesIO()
    Image.fromarray(photo).save(exif, "PNG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05")
    with warnings.catch_warnings(record=True) as caught:
        formats.quiet_decoders()
        warnings.filterwarnings("always", module=__name__)
        decode_image(exif.getvalue())
        warnings.warn("ours", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["ours"]
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_libtiff_would_print(photo):
    """The test above can fail: another process, in which nothing is kept quiet."""
    code = "import sys, io; from PIL import Image; Image.open(io.BytesIO(sys.stdin.buffer.read()))"
    command = [sys.executable, "-c", f"{code}.load()"]
    done = subprocess.run(command, input=noisy(photo)[1], capture_output=True, check=False)
    assert b"LZWDecode" in done.stderr


@pytest.mark.long
def test_workers_print_nothing_of_decoders(tmp_path, photo, capfd):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.fromarray(photo).save(tmp_path / name / "good.png")
        for number, data in enumerate(noisy(photo)):
            (tmp_path / name / f"{number}.tif").write_bytes(data)
    source = open_source(str(tmp_path), split="all")
    plain = TrainTransform((6, 8), crop="none", flip=False)
    batches = make_train_iterator(
        source, batch_size=18, transform=plain, seed=0, workers=1, on_unreadable="skip"
    )
    next(batches)
    batches.close()
    assert "Decode" not in capfd.readouterr().err


def test_ours_is_still_logged(caplog):
    logging.getLogger("vitswin_jax.data").warning("ours")
    assert caplog.messages == ["ours"]


@pytest.mark.skipif("HEIF" in formats.FORMATS, reason="pillow-heif is installed")
def test_heic_without_pillow_heif():
    with pytest.raises(UserError, match=r"^x\.heic: is HEIF, .* `pip install pillow-heif` makes"):
        decode_image(HEIC, name="x.heic")


def test_heic_with_pillow_heif(photo):
    pillow_heif = pytest.importorskip("pillow_heif")
    data = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(photo)).save(data, quality=95)
    assert np.abs(decode_image(data.getvalue()).astype(int) - photo).mean() < 4


def test_pillow_heif_is_registered_where_it_is_installed(monkeypatch):
    class Stub:
        @staticmethod
        def register_heif_opener():
            Image.OPEN["HEIF"] = None

    monkeypatch.setitem(sys.modules, "pillow_heif", Stub)
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    assert formats._readable()[-1] == "HEIF"
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    del Image.OPEN["HEIF"]
    assert "HEIF" not in formats._readable()
