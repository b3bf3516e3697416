"""The table of published weights: whole, usable, and no name with two meanings."""

import re
from collections import Counter
from urllib.parse import unquote, urlsplit

import pytest

from vitswin_jax.core.types import UserError
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.models.registry import create_model
from vitswin_jax.models.variants import VARIANTS
from vitswin_jax.nn.layers import pair
from vitswin_jax.weights.published import (
    CLASS_LISTS,
    CLASS_NAMES,
    IMAGES,
    class_names,
    find_published,
    published,
)

ROWS = list(published().values())
DIGITS = {"sha256": 64, "md5": 32}


def test_every_address_and_name_is_one_files():
    assert len(ROWS) == 175
    for key in ("address", "name"):
        twice = [k for k, n in Counter(getattr(row, key) for row in ROWS).items() if n > 1]
        assert not twice
    for row in ROWS:
        url = urlsplit(row.address)
        assert (url.scheme, url.query, url.fragment) == ("https", "", ""), row.address
        assert unquote(url.path).endswith(f"/{row.file}")
        assert row.file.endswith((".npz", ".pth")), row.file
        assert re.fullmatch(r"[\w-]+/[\w-]+:[\w./-]+", row.document), row.document
        assert find_published(row.name) is row


@pytest.mark.parametrize("variant", sorted({row.variant for row in ROWS}))
def test_every_variant_exists(variant):
    assert variant in VARIANTS
    size = pair(create_model(variant).img_size)
    for row in ROWS:
        if row.variant == variant:
            assert Preprocess(img_size=size, **row.images).img_size == size


def test_numbers_are_in_range_and_have_a_source():
    for row in ROWS:
        assert (row.top1 is None) == (row.top1_by is None)
        if row.top1 is not None:
            assert 50 < row.top1 < 100  # percent, not a fraction
            assert row.class_list == "imagenet1k"
        if row.digest is not None:
            algorithm, digits = row.digest.split(":")
            assert re.fullmatch("[0-9a-f]+", digits)
            assert 6 <= len(digits) <= DIGITS[algorithm]
    assert {row.class_list for row in ROWS} == set(CLASS_LISTS)
    assert {tuple(row.images.items()) for row in ROWS} == {
        tuple(i.items()) for i in IMAGES.values()
    }


def test_digits_in_a_files_name_are_its_sha256():
    """As PyTorch's own hub reads them."""
    for row in ROWS:
        in_name = re.search(r"-([0-9a-f]{8,})\.", row.file)
        if in_name:
            assert row.digest == f"sha256:{in_name[1]}"
    assert sum(row.digest is not None for row in ROWS) == 17


@pytest.mark.parametrize(
    ("name", "variant", "top1", "classes"),
    [
        ("swin/swin_tiny_patch4_window7_224", "swin_tiny_patch4_window7_224", 81.2, 1000),
        ("swin/swin_base_patch4_window7_224_22k", "swin_base_patch4_window7_224", None, 21841),
        ("deit/deit_tiny_patch16_224", "deit_tiny_patch16_224", 72.2, 1000),
        ("mae/mae_pretrain_vit_huge.pth", "vit_huge_patch14_224", None, 0),
        ("vit/imagenet21k/ViT-B_16", "vit_base_patch16_224", None, 21843),
        ("vit/ViT-H_14", "vit_huge_patch14_224", None, 21843),
        ("big_vision/vit_s16_i1k_90ep", "vit_small_patch16_gap_224", 76.5, 1000),
        ("siglip2/siglip2_g-opt16_256", "vit_giantopt_patch16_siglip_256", None, 0),
    ],
)
def test_names_and_beginnings_of_names(name, variant, top1, classes):
    row = find_published(name)
    assert (row.variant, row.top1, row.num_classes) == (variant, top1, classes)


def test_the_l16_of_google_and_of_timm_are_two_files():
    """The recommended one has 85.59 %, timm's 87.10 % at 384 pixels."""
    with pytest.raises(UserError, match="is the name of several files") as error:
        find_published("augreg/L/16")
    assert "L_16-i21k-300ep-lr_0.001-aug_strong1" in str(error.value)
    assert "L_16-i21k-300ep-lr_0.001-aug_medium1" in str(error.value)
    assert "\n" not in str(error.value)
    large = {row.name: row.top1 for row in ROWS if row.variant == "vit_large_patch16_384"}
    assert {85.59, 87.096} <= set(large.values())
    with pytest.raises(UserError, match=r"vit/imagenet21k/ViT-B_16, vit/imagenet21k\+imagenet2012"):
        find_published("vit/ViT-B_16")


def test_misspelt_and_other_names():
    with pytest.raises(UserError, match="did you mean 'swin/swin_tiny_patch4_window7_224'"):
        find_published("swin/swin_tinny_patch4_window7_224")
    with pytest.raises(UserError, match="vitswin models --sources"):
        find_published("mae/")
    assert find_published("flowers/model") is None
    assert find_published("model") is None


def test_classes_have_the_names_that_the_challenge_gave_them():
    assert {name: len(class_names(name)) for name in CLASS_NAMES} == {"imagenet1k": 1000}
    names = class_names("imagenet1k")
    known = {0: "tench", 207: "golden retriever", 281: "tabby", 985: "daisy", 999: "toilet tissue"}
    assert all(names[index].startswith(word) for index, word in known.items())
    assert class_names("imagenet22k") is class_names("none") is class_names(None) is None
