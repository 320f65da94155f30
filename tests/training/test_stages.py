"""What a stage may have of its own: the size of tiles, the prompt format, the layer from which a part trains."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from tests.training.helpers import recipe_fields, start
from vlm_jax.checkpoints import complete, read_params
from vlm_jax.config import build
from vlm_jax.errors import UserError
from vlm_jax.globs import flatten
from vlm_jax.models.positions import resize_positions
from vlm_jax.models.vlm import init_params
from vlm_jax.training.loop import fit_positions, shapes_in
from vlm_jax.training.recipe import Recipe
from vlm_jax.training.stage import stage_preparer

BORDER, END = 3, 6
POSITIONS = "vision/position_embedding"


@pytest.fixture(scope="module")
def growing() -> Recipe:
    """Tiles of 8 px, then of 16; another prompt format first; then the upper layer of the encoder and the connector."""
    fields = recipe_fields(teacher=None, runtime=dict(checkpoint_seconds=0.0, keep_checkpoints=8))
    fields["system"]["model"]["decoder"]["vocab_size"] = 500
    common = dict(objective=dict(type="generate"), steps=BORDER, data=dict(rows=4, tokens=120, tiles=4))
    fields["stages"] = [
        dict(common, name="small", trainable=["vision/**"], image_size=8, template="internvl2_5"),
        dict(common, name="large", trainable=["connector/**", "vision/**"], tune_from_layer=dict(vision=1)),
    ]
    return build(Recipe, fields)


@pytest.fixture(scope="module")
def whole(growing, splits, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return start(growing, folder, splits, tokenizer), folder


def params_at(folder, number):
    return flatten(read_params(folder / "checkpoints", number)[0])


def test_positions_grow_at_the_border_and_are_trained_on_from_there(growing, whole):
    before, first, end = (params_at(whole[1], number) for number in (BORDER, BORDER + 1, END))
    assert len(before[POSITIONS]) == 1 + 4
    assert len(first[POSITIONS]) == len(end[POSITIONS]) == 1 + 16
    # In this stage they are frozen: what the first left, interpolated.
    np.testing.assert_array_equal(end[POSITIONS], resize_positions(jax.numpy.asarray(before[POSITIONS]), 2, 4, True))
    assert shapes_in(growing, 0)["vision"]["position_embedding"].shape == before[POSITIONS].shape
    assert shapes_in(growing, 1)["vision"]["position_embedding"].shape == end[POSITIONS].shape


def test_of_a_part_that_trains_from_a_layer_on_nothing_else_does(whole):
    before, end = params_at(whole[1], BORDER), params_at(whole[1], END)
    moved = {path for path in end if path != POSITIONS and not np.array_equal(before[path], end[path])}
    assert {path.split("/")[0] for path in moved} == {"vision", "connector"}
    vision = {path for path in moved if path.startswith("vision")}
    assert vision == {path for path in end if path.startswith("vision/layers/1/")}


@pytest.mark.parametrize("number", [BORDER - 1, BORDER, BORDER + 1])
def test_continued_around_the_border_is_bit_equal(growing, splits, tokenizer, whole, tmp_path, number, capsys):
    """From the last checkpoint of the small size, which knows nothing of the large one, and from the first after it."""
    shutil.copytree(whole[1], tmp_path, dirs_exist_ok=True)
    for later in complete(whole[1] / "checkpoints"):
        if later > number:
            shutil.rmtree(tmp_path / "checkpoints" / f"{later:08d}")
    trained = start(growing, tmp_path, splits, tokenizer)
    assert f"continuing from checkpoint {number}: " in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(trained.params), jax.device_get(whole[0].params))


def test_a_stage_sees_its_own_size_and_prompt(growing, splits, tokenizer):
    first, second = (stage_preparer(growing, number, tokenizer) for number in (0, 1))
    small, large = first(splits.train[1]), second(splits.train[1])
    assert (small.patches.shape[1], large.patches.shape[1]) == (4, 16)
    assert (first.template.name, second.template.name) == ("internvl2_5", "internvl2")
    assert growing.system_in(growing.stages[0]).model.vision.image_size == 8
    assert growing.models_in(growing.stages[1]).student == growing.system.model


def test_a_teacher_sees_the_size_of_the_stage():
    fields = recipe_fields()
    fields["stages"][0]["image_size"] = 8
    recipe = build(Recipe, fields)
    assert recipe.models_in(recipe.stages[0]).teacher.vision.image_size == 8
    shapes = flatten(shapes_in(recipe, 0))
    assert shapes["teacher/vision/position_embedding"].shape[0] == shapes[POSITIONS].shape[0] == 5


def test_without_positions_nothing_is_interpolated():
    fields = recipe_fields(teacher=None, stages=[dict(recipe_fields()["stages"][1], name="only")])
    fields["system"]["model"]["vision"] = dict(type="patch_projection", patch_size=4, width=24, patches=8)
    fields["system"]["model"]["connector"] = dict(type="identity")
    fields["system"]["layout"] = dict(type="native_raster", patch_size=4, slot=8, max_width=16, max_height=16)
    fields["stages"][0]["image_size"] = None
    recipe = build(Recipe, fields)
    models = recipe.models_in(recipe.stages[0])
    params = jax.eval_shape(lambda: init_params(models.student, jax.random.key(0)))
    assert flatten(fit_positions(params, models)) == flatten(params)


@pytest.mark.parametrize(
    ("number", "changes", "message"),
    [
        (1, dict(image_size=8), r"stages\[1\]\.image_size: the last stage must have the system's own, 16, got 8"),
        (0, dict(image_size=2), r"config\.stages\[0\]: .*patch_size"),
        (0, dict(template="nonsense"), r"config\.stages\[0\]: .*no template 'nonsense'; there are"),
        (0, dict(tune_from_layer=dict(vision=-1)), r"stages 'small': tune_from_layer: must be at least 0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(growing, number, changes, message):
    def changed():
        stages = list(growing.stages)
        stages[number] = dataclasses.replace(stages[number], **changes)
        return dataclasses.replace(growing, stages=tuple(stages))

    with pytest.raises(UserError, match=message):
        changed()


@pytest.mark.parametrize("parts", [dict(vision=2), dict(visoin=0)])
def test_a_layer_that_is_not_there_is_refused_before_training(growing, splits, tokenizer, tmp_path, parts):
    stage = dataclasses.replace(growing.stages[0], tune_from_layer=parts)
    (part,) = parts
    with pytest.raises(UserError, match=rf"stages 'small': trainable: no parameter matches {part}/"):
        start(dataclasses.replace(growing, stages=(stage, growing.stages[1])), tmp_path, splits, tokenizer)
