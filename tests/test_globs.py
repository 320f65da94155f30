import pytest

from vlm_jax import globs
from vlm_jax.errors import UserError


@pytest.mark.parametrize(
    ("path", "glob", "expected"),
    [
        ("vision/layers/7/mlp/up/kernel", "vision/**", True),
        ("vision/layers/7/mlp/up/kernel", "**/kernel", True),
        ("vision/layers/7/mlp/up/kernel", "vision/layers/*/mlp/*/kernel", True),
        ("vision/layers/7/mlp/up/kernel", "vision/layers/*/kernel", False),
        ("vision/layers/7/mlp/up/kernel", "vision", False),
        ("connector/up/kernel", "**/connector/up/kernel", True),
        ("teacher/connector/up/kernel", "**/connector/up/kernel", True),
        ("my_connector/up/kernel", "**/connector/up/kernel", False),
        ("a.b", "a?b", False),
        ("vision/layers/12/mlp/up/kernel", "vision/layers/{12..}/**", True),
        ("vision/layers/100/mlp/up/kernel", "vision/layers/{12..}/**", True),
        ("vision/layers/11/mlp/up/kernel", "vision/layers/{12..}/**", False),
        ("vision/layers/9/mlp/up/kernel", "vision/layers/{12..}/**", False),  # a number, not a text
        ("vision/layers/x/mlp/up/kernel", "vision/layers/{12..}/**", False),
        ("vision/layers/12", "vision/layers/{12..}/**", False),
        ("decoder/layers/0/experts/7/up", "**/layers/{0..}/experts/{7..}/*", True),
        ("decoder/layers/0/experts/6/up", "**/layers/{0..}/experts/{7..}/*", False),
        ("layers_12_of/x", "layers_{12..}_of/x", True),
        ("a/{12..}", "a/{12}", False),
        ("a/{12}", "a/{12}", True),
    ],
)
def test_matches(path, glob, expected):
    assert globs.matches(path, glob) is expected


def test_last_match_wins():
    rules = (("**", 1), ("decoder/**", 2), ("decoder/layers/0/**", 3))
    assert globs.last_match("decoder/norm/scale", rules, 0) == 2
    assert globs.last_match("decoder/layers/0/norm/scale", rules, 0) == 3
    assert globs.last_match("x", (), 0) == 0


def test_globs_that_match_nothing_are_named():
    tree = {"vision": {"bias": 1}, "decoder": {"bias": 2}}
    globs.check(tree, ("vision/**", "**/bias"), "trainable")
    with pytest.raises(UserError, match=r"trainable: no parameter matches vison/\*\*; .* vision/bias, decoder/bias"):
        globs.check(tree, ("vison/**", "**/bias"), "trainable")


def test_flatten_round_trip():
    tree = {"a": {"0": {"kernel": 1}, "1": {"kernel": 2}}, "b": 3}
    assert globs.flatten(tree) == {"a/0/kernel": 1, "a/1/kernel": 2, "b": 3}
    assert globs.unflatten(globs.flatten(tree)) == tree
