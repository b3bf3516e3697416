"""A file is the old one or the new one, and nothing is left beside it."""

import pytest

from vitswin_jax.core.atomic import check_writable, replacing
from vitswin_jax.core.types import UserError


def test_what_was_written_replaces_the_file(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("raised", "seen", "message"),
    [
        (OSError(28, "No space left on device"), UserError, "cannot write .*a: No space left"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
        (ValueError("bug"), ValueError, "bug"),
    ],
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, raised, seen, message):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(seen, match=message), replacing(path) as temporary:
        temporary.write_text("half")
        raise raised
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_named(tmp_path):
    with (
        pytest.raises(UserError, match=r"cannot write .*no/a: No such file"),
        replacing(tmp_path / "no" / "a"),
    ):
        pass


def test_what_could_not_be_written_is_known_before(tmp_path):
    check_writable(tmp_path / "a")
    assert not list(tmp_path.iterdir())
    (tmp_path / "b").write_text("old")
    check_writable(tmp_path / "b")
    assert (tmp_path / "b").read_text() == "old"
    with pytest.raises(UserError, match=r"cannot write .*: it is a folder"):
        check_writable(tmp_path)
    with pytest.raises(UserError, match=r"cannot write .*c: No such file or directory"):
        check_writable(tmp_path / "none" / "c")
