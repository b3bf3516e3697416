"""Files of other formats, recognised by name, with advice how to convert them."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from vitswin_jax.core.types import UserError

HEAD = 512
"""How many of its first bytes show what a file is."""

_AGAIN = "download it again"
_TO_ARRAYS = "load it with its own library and save the arrays as .npz or .safetensors"

_BYTES = (
    (rb"\s*<(!doctype|html|head|\?xml|!--)", "a web page",
     "the address may be that of a page or of a log-in; a file on the Hugging Face hub has "
     "/resolve/ in its address, not /blob/"),
    (rb"version https://git-lfs", "a git-lfs pointer", "get the file itself by `git lfs pull`"),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file (.h5, as Keras and TensorFlow write)", _TO_ARRAYS),
    (rb"\xff\xd8\xff|\x89PNG|GIF8|BM.{12}\x28\0\0\0|RIFF....WEBP|II\*\0|MM\0\*", "an image",
     "give the weights first, and the images after them"),
    (rb"%PDF", "a PDF", "give a weights file"),
    (rb"GGU[FM]|ggml", "a GGUF file", "its numbers are quantized; take the original weights"),
    (rb"....TFL3", "a TensorFlow Lite model", "take the weights that it was converted from"),
    (rb"\x08[\x01-\x1f][\x12\x1a\x22\x3a\x42]", "an ONNX model",
     "take the weights that it was exported from"),
    (rb"([\x81-\x8f]|\xde..|\xdf....)[\xa1-\xbf\xd9]", "a Flax msgpack file",
     "load it by flax.serialization.msgpack_restore and save the arrays as .npz, or take the "
     "model.safetensors of its repository"),
    (rb"\x93NUMPY", "one NumPy array (.npy)", "save all arrays by name, with np.savez"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!", "a compressed archive",
     "unpack it"),
    (rb".{257}ustar", "a tar archive", "unpack it; a .pth of PyTorch before 0.1.10 is one too: "
     "load and save it with torch.load and torch.save"),
)  # fmt: skip
"""What the first bytes match, what such a file is, and what to do; safetensors go first."""

_MEMBERS = (
    (r"(model\.weights\.h5|keras_metadata\.pb)", "a Keras model (.keras)", _TO_ARRAYS),
    (r"(.*/)?(constants\.pkl|code/.*)", "a TorchScript program",
     "load it by torch.jit.load and save its state_dict() with torch.save"),
    (r"(.*/)?(archive_format|serialized_exported_program\.json|models/.*\.json)",
     "an exported PyTorch program (.pt2)", "save the state_dict() of the module it is of"),
    (r"word/.*|xl/.*|META-INF/.*|AndroidManifest\.xml", "a document or a program",
     "give a weights file"),
)  # fmt: skip
"""What the name of a zip file's member matches, what such a file is, and what to do."""

_FOLDERS = (
    ("saved_model.pb", "a TensorFlow SavedModel", _TO_ARRAYS),
    ("*.data-*-of-*", "a TensorFlow checkpoint", _TO_ARRAYS),
    ("_CHECKPOINT_METADATA", "an Orbax checkpoint", _TO_ARRAYS),
    ("_METADATA", "an Orbax checkpoint", _TO_ARRAYS),
    ("manifest.ocdbt", "an Orbax checkpoint", _TO_ARRAYS),
    ("flax_model.msgpack", "a folder of Flax weights", "save the model as model.safetensors too"),
    ("tf_model.h5", "a folder of TensorFlow weights", "save the model as model.safetensors too"),
    ("*.onnx", "a folder of ONNX models", "take the weights that they were exported from"),
    ("*.gguf", "a folder of GGUF files", "take the original weights"),
)  # fmt: skip
"""What a folder has, what such a folder is, and what to do."""

_TENSORFLOW = re.compile(r"\.data-\d+-of-\d+$|\.index$|\.meta$")


def refuse_foreign(path: Path, head: bytes) -> None:
    """Raises UserError, which says what a file is, for files of other kinds, by their `HEAD`."""
    if not head:
        raise UserError(f"{path}: is empty; {_AGAIN}.")
    if not head.strip(b"\0"):
        raise UserError(f"{path}: begins with zeros, as a download that broke off; {_AGAIN}.")
    for pattern, what, way_out in _BYTES:
        if re.match(pattern, head, re.DOTALL | re.IGNORECASE):
            raise _refusal(path, what, way_out)
    if _TENSORFLOW.search(path.name):
        raise _refusal(path, "a part of a TensorFlow checkpoint", _TO_ARRAYS)


def refuse_zip(path: Path, members: Collection[str]) -> None:
    """Raises UserError for a zip file that is of another kind by the names of its members."""
    for pattern, what, way_out in _MEMBERS:
        if any(re.fullmatch(pattern, name) for name in members):
            raise _refusal(path, what, way_out)


def refuse_folder(path: Path) -> None:
    """Raises UserError for a folder of weights that are of another kind."""
    for pattern, what, way_out in _FOLDERS:
        if any(path.glob(pattern)):
            raise _refusal(path, what, way_out)


def _refusal(path: Path, what: str, way_out: str) -> UserError:
    return UserError(f"{path}: is {what}, which is not read; {way_out}.")
