import pytest

from vlm_jax.convert.images import read_size, read_statistics
from vlm_jax.errors import UserError


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}, {"mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 3.0)}),
        ({"image_mean": 0.5, "do_rescale": True, "rescale_factor": 0.00392156862745098}, {"mean": (0.5,) * 3}),
        ({"image_mean": [0.1, 0.2, 0.3], "do_normalize": False}, {"mean": (0.0,) * 3, "std": (1.0,) * 3}),
        ({}, {}),
    ],
)
def test_statistics(images, expected):
    assert read_statistics(images, "x") == expected


def test_other_pixels():
    with pytest.raises(UserError, match=r"x: do_rescale must be True, is False; image_std must be three numbers"):
        read_statistics({"do_rescale": False, "image_std": [1, 2]}, "x")
    with pytest.raises(UserError, match=r"x: rescale_factor must be 1/255, is 0.0078"):
        read_statistics({"rescale_factor": 1 / 127.5}, "x")


@pytest.mark.parametrize(
    ("images", "size"),
    [
        ({"size": 224, "crop_size": 448, "do_center_crop": True}, 448),
        ({"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}, "do_center_crop": True}, 336),
        ({"size": {"height": 384, "width": 384}}, 384),
        ({"size": 384, "crop_size": 224, "do_center_crop": False}, 384),
        ({"size": {"shortest_edge": 336}}, None),
        ({}, None),
    ],
)
def test_size(images, size):
    assert read_size(images, "x") == size


def test_images_that_are_not_square():
    with pytest.raises(UserError, match=r"x: size must be square, is \[384, 378\]"):
        read_size({"size": {"height": 384, "width": 378}}, "x")
