"""Messages to the user: one printable line, whatever names and values are in them."""

import pickle

import pytest

from vitswin_jax.core.types import LINE, UserError, listed, naming


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "\ud800", "\u2028", "a\0b", "\r"])
def test_a_message_is_one_printable_line(name):
    message = str(UserError(f"{name}: no such file."))
    assert message.isprintable()
    assert message.endswith(": no such file.")
    message.encode()


def test_a_message_fits_a_screen_and_keeps_its_ends():
    message = str(UserError(f"a.pth: has {'x' * 5000}; save it again."))
    assert LINE - 2 < len(message) <= LINE
    assert message.startswith("a.pth: has xxx")
    assert message.endswith("xxx; save it again.")
    assert str(UserError("x" * LINE)) == "x" * LINE


def test_other_languages_are_printable():
    assert str(UserError("数据.pth: größer")) == "数据.pth: größer"


def test_errors_pass_between_processes():
    assert str(pickle.loads(pickle.dumps(UserError("a")))) == "a"


def test_lists_are_short():
    assert listed([]) == ""
    assert listed(["a", "b"]) == "a, b"
    assert listed(map(str, range(1000))) == "0, 1, 2, 3, 4, ... (1000 in all)"
    assert len(listed(["x" * 300] * 9)) < 400


def test_the_file_of_an_error_is_named():
    with pytest.raises(UserError, match=r"^a\.pth: is damaged$"), naming("a.pth"):
        raise UserError("is damaged")
