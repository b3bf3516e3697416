"""A run's claim of its folder: its config, its data, and what is left of killed runs."""

import json
import logging
import os
import subprocess

import pytest

from vitswin_jax.core.seal import seal
from vitswin_jax.core.types import UserError
from vitswin_jax.train.keep.claim import check_name, claimed
from vitswin_jax.train.keep.same_data import check_same_data, read_recorded, write_accepted

CONFIG = {
    "seed": 0,
    "optim": {"peak_lr": 0.1, "betas": (0.9, float("inf"))},
    "data": {"dataset": "./flowers", "workers": 1},
}
SPLIT = {"images": 9, "per_class": [4, 5], "digests": {"names": "aa", "labels": "bb"}}
DATA = {"classes": ["rose", "tulip"], "train": SPLIT, "test": SPLIT}
OTHER = DATA | {"train": SPLIT | {"images": 8, "per_class": [4, 4]}}


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.INFO, logger="vitswin_jax")
    return caplog


def claim(workdir, config=CONFIG, data=DATA, **options):
    with claimed(workdir, config, data, **options) as path:
        return path


def checkpoint(workdir, step, data=DATA):
    """Writes the files about a checkpoint that are read before its arrays are."""
    folder = workdir / "checkpoints" / str(step)
    for name in ("meta", "metrics"):
        (folder / name).mkdir(parents=True)
    about = {"step": step, "metrics": {}, "arrays": {}, "data": {"next_batch": step}}
    if data is not None:
        about["data"]["fingerprint"] = data
    (folder / "meta" / "metadata").write_text(json.dumps(seal(about)))
    (folder / "metrics" / "metrics").write_text("{}")
    (folder / "_CHECKPOINT_METADATA").write_text("{}")
    return folder


def test_a_folder_is_claimed_again_by_the_same_config_only(tmp_path):
    workdir = tmp_path / "a" / "run"
    assert claim(workdir) == workdir
    written = (workdir / "config.json").read_text()
    json.loads(written, parse_constant=pytest.fail)
    claim(workdir)
    claim(workdir, CONFIG | {"data": {"dataset": "./flowers", "workers": 7}})  # may change
    claim(workdir)
    assert (workdir / "config.json").read_text() == written
    with pytest.raises(UserError, match=r"another config: optim.x was absent and is 1; seed was 0"):
        claim(workdir, CONFIG | {"seed": 3, "optim": CONFIG["optim"] | {"x": 1}})
    assert (workdir / "config.json").read_text() == written


def test_another_place_of_the_data_needs_their_fingerprint(tmp_path):
    elsewhere = CONFIG | {"data": {"dataset": "/mnt/flowers", "workers": 1}}
    claim(tmp_path)
    with pytest.raises(UserError, match=r"data\.dataset was \./flowers and is /mnt/flowers"):
        claim(tmp_path, elsewhere)
    checkpoint(tmp_path, 3, None)
    with pytest.raises(UserError, match=r"data\.dataset was \./flowers and is /mnt/flowers"):
        claim(tmp_path, elsewhere)
    checkpoint(tmp_path, 4)
    with pytest.raises(UserError, match="its training data changed since step 4: 9 images, now 8"):
        claim(tmp_path, elsewhere, OTHER)
    assert "./flowers" in (tmp_path / "config.json").read_text()
    claim(tmp_path, elsewhere)
    assert "/mnt/flowers" in (tmp_path / "config.json").read_text()
    claim(tmp_path)


def test_changed_data_are_refused_until_they_are_accepted(tmp_path, told):
    claim(tmp_path, data=OTHER)  # nothing was trained on others
    checkpoint(tmp_path, 3, OTHER)
    checkpoint(tmp_path, 12)
    claim(tmp_path)
    assert not told.messages
    line = (
        f"{tmp_path}: its training data changed since step 12: 9 images, now 8; "
        "'tulip' had 5 images, now 4; "
    )
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            claim(tmp_path, data=OTHER)
        assert (
            str(caught.value) == f"{line}add --accept_changed_data to resume on the changed data."
        )
    claim(tmp_path)
    claim(tmp_path, data=OTHER, accept_changed_data=True)
    assert told.messages == [f"{line}the run resumes on the changed data, as accepted."]
    claim(tmp_path, data=OTHER)  # accepted before the next checkpoint records them
    with pytest.raises(UserError, match="8 images, now 9"):
        claim(tmp_path)
    checkpoint(tmp_path, 15, OTHER)
    claim(tmp_path, data=OTHER)
    assert len(told.messages) == 1


def test_a_checkpoint_that_records_no_data_is_resumed_with_a_line(tmp_path, told):
    checkpoint(tmp_path, 12, None)
    claim(tmp_path)
    (line,) = told.messages
    assert line == (
        f"{tmp_path}: the checkpoint of step 12 does not record its data, so a change since then "
        "cannot be noticed."
    )


def test_the_newest_checkpoint_that_can_be_read_counts(tmp_path):
    checkpoint(tmp_path, 3)
    (checkpoint(tmp_path, 12, OTHER) / "meta" / "metadata").write_text("[")
    assert read_recorded(tmp_path).step == 3
    write_accepted(tmp_path, 3, OTHER)
    assert read_recorded(tmp_path).data == OTHER
    accepted = tmp_path / "accepted_data.json"
    accepted.write_text(accepted.read_text().replace("8", "7"))
    assert read_recorded(tmp_path).data == DATA


def test_a_head_does_not_resume_on_other_classes(tmp_path):
    checkpoint(tmp_path, 12)
    recorded = read_recorded(tmp_path)
    more = DATA | {"classes": ["rose", "tulip", "violet"]}
    for accept in (False, True):
        with pytest.raises(
            UserError, match="a head for 2 classes cannot resume on 3 classes, even"
        ):
            check_same_data(tmp_path, recorded, more, accept=accept, labelled=True)
    assert check_same_data(tmp_path, recorded, more, accept=True, labelled=False)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "it is empty"),
        ("a\0b", r"\\x00b: cannot be written \(it has a NUL character\)"),
        ("a" * 300, "File name too long"),
        ("x/" * 3000, "File name too long"),
        ("~nobody-of-this-name/x", "there is no such home folder"),
        ("a\ud800", "characters"),
        ("caf\udce9", "its characters are not UTF-8"),
    ],
    ids=["empty", "nul", "long", "deep", "home", "surrogate", "latin-1"],
)
def test_what_cannot_be_a_folder_is_one_line(name, reason):
    with pytest.raises(UserError, match=f"^workdir .*{reason}") as caught:
        check_name(name)
    assert len(str(caught.value)) <= 1000


@pytest.mark.parametrize("place", ["file", "file/below", "loop", "dangling"])
def test_what_is_no_folder_is_one_line(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere/at/all")
    with pytest.raises(UserError, match=rf"^workdir {tmp_path / place}: cannot be written \("):
        claim(check_name(tmp_path / place))


DAMAGES = [
    ("[]", "its content is \\[\\]; it must be an object"),
    ("nul", "is not valid JSON"),
    ("{", "is not valid JSON"),
    ("", "is not valid JSON"),
    (b"\xff\xfe\0", "is not valid JSON"),
    ("[" * 100_000, "is not valid JSON"),
    ('{"a": ' * 100_000, "is not valid JSON"),
    ("{}", "has a run of another config: .*keys? more differ|data.dataset was absent"),
    ('{"optim": 3}', "optim was 3 and is absent"),
    ('{"seed": "' + "x" * 10_000 + '"}', "seed was xxx"),
    (None, "is a folder and must be a file of the run; remove it"),
]


@pytest.mark.parametrize(("content", "message"), DAMAGES, ids=range(len(DAMAGES)))
def test_a_config_that_is_none_is_one_line(tmp_path, content, message):
    path = tmp_path / "config.json"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        claim(tmp_path)
    assert str(path.parent) in str(caught.value) and len(str(caught.value)) <= 600
    if path.is_file():
        path.unlink()
        claim(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "report.html", "metrics.jsonl"])
def test_a_folder_in_the_place_of_a_file_is_one_line(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"/{name}: is a folder and must be a file of the run"):
        claim(tmp_path)


@pytest.mark.parametrize("name", ["checkpoints", "profile"])
def test_a_file_in_the_place_of_a_folder_is_one_line(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(UserError, match=f"/{name}: is a file and must be a folder of the run"):
        claim(tmp_path)


def test_what_killed_runs_left_is_swept_and_nothing_else(tmp_path):
    with subprocess.Popen(["true"]) as dead:
        pass
    with subprocess.Popen(["sleep", "60"]) as alive:
        swept = [f".{name}.{dead.pid}.tmp" for name in ("config.json", "model.safetensors")]
        swept += [f".report.html.{os.getpid()}.tmp"]  # a number is given again
        kept = [f".metrics.jsonl.{alive.pid}.tmp", f".mine.{dead.pid}.tmp", ".config.json.tmp"]
        for name in (*swept, *kept):
            (tmp_path / name).write_text("half")
        claim(tmp_path)
        alive.kill()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*kept, "config.json", ".lock"}
