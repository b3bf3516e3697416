"""One value of several, all faults in one error, unread keys."""

import pytest

from vitswin_jax.core.choices import Faults, one_of, wrong_choice
from vitswin_jax.core.types import UserError


def test_a_known_value_is_returned_and_of_a_mapping_its_entry():
    assert one_of("model.remat", False, (False, "full")) is False
    assert one_of("optim.name", "sgd", {"sgd": 3, "adamw": 4}) == 3
    assert wrong_choice("kind", "hard", ("soft", "hard")) == []


def test_an_unknown_value_is_one_line_with_the_key_the_nearest_and_all():
    line = "optim.name='adamv' must be one of adamw, sgd (did you mean 'adamw'?)"
    assert wrong_choice("optim.name", "adamv", {"adamw": 1, "sgd": 2}) == [line]
    with pytest.raises(UserError) as error:
        one_of("optim.name", "adamv", {"adamw": 1, "sgd": 2})
    assert str(error.value) == f"{line}."


@pytest.mark.parametrize("value", [None, 3, []])
def test_a_value_that_is_no_text_is_one_line_too(value):
    with pytest.raises(UserError, match=r"^optim\.name=.* must be one of adamw, sgd\.$"):
        one_of("optim.name", value, {"adamw": 1, "sgd": 2})


def test_faults_are_one_error_of_all_lines_in_order_and_none_without():
    faults = Faults()
    faults.need(True, "not this")
    faults.check("optim: ")
    faults.need(False, "rank=0 must be above 0")
    faults += wrong_choice("kind", "hart", ("soft", "hard"))
    with pytest.raises(UserError) as error:
        faults.check("lora: ")
    told = "kind='hart' must be one of soft, hard (did you mean 'hard'?)"
    assert str(error.value) == f"lora: rank=0 must be above 0; {told}."
