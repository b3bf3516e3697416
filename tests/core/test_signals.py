"""Signals that end a process: what it leaves. tests/test_stops.py has those of runs."""

from vitswin_jax.core.signals import _remove


def test_temporary_files_and_folders_are_removed(tmp_path):
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("x")
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "weights").write_text("x")
    for path in (file, folder, tmp_path / "absent"):
        _remove(str(path))
    assert not list(tmp_path.iterdir())
