import itertools

import numpy as np
import pytest
from sklearn.datasets import load_digits

from vlm_jax.data.pocket import material as material_module
from vlm_jax.data.pocket.material import CELLS, GUARD, PHOTOGRAPHS, cells, load_material
from vlm_jax.data.pocket.scene import SPLITS, split_of
from vlm_jax.errors import UserError


def test_digit_images_are_divided_without_rest_and_stratified(material):
    indices = [set(material[split].indices.tolist()) for split in SPLITS]
    assert sum(map(len, indices)) == 1797
    assert set.union(*indices) == set(range(1797))
    for split in SPLITS:
        shares = np.bincount(material[split].labels, minlength=10) / len(material[split].labels)
        assert np.abs(shares - 0.1).max() < 0.02


def test_digit_images_are_scikit_learns(material):
    digits = load_digits()
    own = material["test"]
    np.testing.assert_array_equal(own.labels, digits.target[own.indices])
    np.testing.assert_allclose(own.digits / 255 * 16, digits.images[own.indices], atol=0.04)


def test_no_two_equal_digit_images_are_in_different_splits(material):
    for one, other in itertools.combinations(SPLITS, 2):
        seen = {image.tobytes() for image in material[one].digits}
        assert not seen & {image.tobytes() for image in material[other].digits}


def test_every_photograph_gives_regions_to_every_split_apart_by_the_guard(material):
    for name in PHOTOGRAPHS:
        regions = {split: material[split].regions[name] for split in SPLITS}
        assert {split: len(own) for split, own in regions.items()} == CELLS
        for one, other in itertools.combinations(SPLITS, 2):
            for a, b in itertools.product(regions[one], regions[other]):
                horizontal = max(a.box[0] - b.box[2], b.box[0] - a.box[2])
                vertical = max(a.box[1] - b.box[3], b.box[1] - a.box[3])
                assert max(horizontal, vertical) >= GUARD, (a.id, b.id)


@pytest.mark.parametrize("size", [(512, 512), (448, 172), (397, 401)])
def test_cells_fill_the_photograph(size):
    boxes = cells(*size)
    assert min(box[0] for box in boxes) == min(box[1] for box in boxes) == 0
    assert (max(box[2] for box in boxes), max(box[3] for box in boxes)) == size


def test_another_seed_divides_differently(material):
    other = load_material(1)["test"]
    assert set(other.indices) != set(material["test"].indices)
    ids = [{r.id for own in m.regions.values() for r in own} for m in (other, material["test"])]
    assert ids[0] != ids[1]


def test_words_are_real_short_and_enough(material):
    words = material["train"].words
    assert len(set(words)) == len(words) == material_module.WORDS
    assert all(3 <= len(word) <= 6 and word.isalpha() and word.islower() for word in words)
    assert "petal" in words  # the iris description


def test_contents_fall_to_splits_by_their_shares():
    counts = dict.fromkeys(SPLITS, 0)
    for number in range(4000):
        counts[split_of(f"content {number}")] += 1
    assert abs(counts["train"] / 4000 - 0.7) < 0.03
    assert abs(counts["test"] / 4000 - 0.2) < 0.03


def test_missing_material_is_named(monkeypatch):
    monkeypatch.setitem(PHOTOGRAPHS, "unicorn", ("skimage", "data/unicorn.png"))
    with pytest.raises(UserError, match=r"unicorn\.png: not there"):
        load_material(0)
