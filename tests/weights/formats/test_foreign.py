"""Files of other kinds are named for what they are, in one line with the way out."""

import io
import zipfile

import msgpack
import numpy as np
import pytest
from PIL import Image

from vitswin_jax.core.types import UserError
from vitswin_jax.weights.formats.foreign import refuse_folder
from vitswin_jax.weights.formats.read import read_tensors


def image(kind):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def zipped(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "{}")
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 346284714\n"
FILES = {
    "empty": (b"", "is empty"),
    "zeros": (bytes(1000), "begins with zeros"),
    "page": (b"\n<!DOCTYPE html>\n<html></html>", "a web page"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page"),
    "pointer": (LFS, "git lfs pull"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(90), "an HDF5 file"),
    "jpeg": (image("JPEG"), "an image"),
    "png": (image("PNG"), "an image"),
    "gif": (image("GIF"), "an image"),
    "bmp": (image("BMP"), "an image"),
    "webp": (image("WEBP"), "an image"),
    "tiff": (image("TIFF"), "an image"),
    "gguf": (b"GGUF\x03\0\0\0" + bytes(90), "a GGUF file"),
    "onnx": (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\xd4\x8c\x08", "an ONNX model"),
    "flax": (msgpack.packb({"params": {"Dense_0": {"kernel": b"0"}}}), "a Flax msgpack file"),
    "flax, wide": (msgpack.packb({f"p{i}": 1 for i in range(99)}), "a Flax msgpack file"),
    "array": (b"\x93NUMPY\x01\0v\0{}", "one NumPy array"),
    "gzip": (b"\x1f\x8b\x08\0" + bytes(99), "a compressed archive"),
    "script": (zipped("a/data.pkl", "a/constants.pkl", "a/code/a.py"), "a TorchScript program"),
    "keras": (zipped("metadata.json", "config.json", "model.weights.h5"), "a Keras model"),
    "exported": (zipped("a/archive_format", "a/models/model.json"), "an exported PyTorch"),
    "model.ckpt.data-00000-of-00001": (b"\1" * 99, "a part of a TensorFlow checkpoint"),
    "object": (b"\x80\x02cmodels\nViT\n)\x81}X\x01\0\0\0aK\x01sb.", "a whole pickled object"),
    "objects": (b"\x80\x02}X\x01\0\0\0acmodels\nViT\n)\x81s.", "a whole pickled object, under a"),
}


@pytest.mark.parametrize("suffix", ["", ".safetensors", ".pth", ".npz"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_is_named_for_what_it_is(tmp_path, name, suffix):
    content, message = FILES[name]
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(content)
    if suffix and name.startswith("model.ckpt"):
        pytest.skip("only the suffix shows it")
    with pytest.raises(UserError, match=message) as error:
        read_tensors(path)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("saved_model.pb", "a TensorFlow SavedModel"),
        ("model.ckpt-1.data-00000-of-00001", "a TensorFlow checkpoint"),
        ("_CHECKPOINT_METADATA", "an Orbax checkpoint"),
        ("flax_model.msgpack", "Flax weights"),
        ("tf_model.h5", "TensorFlow weights"),
        ("model.onnx", "ONNX"),
    ],
)
def test_a_folder_is_named_for_what_it_is(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=message):
        refuse_folder(tmp_path)
