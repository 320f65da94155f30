import dataclasses

import jax
import numpy as np

from tests.training.helpers import noise_batch
from vlm_jax.models.layers import Compute
from vlm_jax.models.vision_transformer import VisionTransformer, init_tower
from vlm_jax.training.objectives import DistillObjective, Models, TeacherConfig, cosine


def test_distilling_where_one_has_no_class_token(recipe):
    """Patches are compared with patches: the class token has no counterpart."""
    student = dataclasses.replace(recipe.system.model.vision, depth=1)
    teacher = dataclasses.replace(recipe.teacher.vision, depth=1, class_token=False, final_norm=True)
    models = Models(
        dataclasses.replace(recipe.system.model, vision=student),
        TeacherConfig(vision=teacher, connector=recipe.teacher.connector),
        Compute(),
    )
    objective = DistillObjective(layers=1)
    trees = {
        "vision": init_tower(student, jax.random.key(2)),
        "teacher": {"vision": init_tower(teacher, jax.random.key(3))},
        **objective.init(models, jax.random.key(4)),
    }
    batch = noise_batch(rows=2)
    loss, sums = objective(models, trees, batch, None)
    real = batch.tile_grid[..., 0].reshape(-1) > 0
    tiles = batch.patches.reshape(-1, *batch.patches.shape[2:])[real]
    (small,), (large,) = (
        VisionTransformer(vision, Compute()).apply({"params": tree}, tiles, capture=1)[1]
        for vision, tree in ((student, trees["vision"]), (teacher, trees["teacher"]["vision"]))
    )
    assert small.shape[1] == large.shape[1] + 1
    projection = trees["distillation"]["0"]
    expected = cosine(small[:, 1:] @ projection["kernel"] + projection["bias"], large).mean(axis=1).sum()
    np.testing.assert_allclose(loss, -expected, rtol=1e-5)
    assert sums["weight"] == real.sum()
