import dataclasses

import jax
import numpy as np

from tests.training.helpers import noise_batch
from vlm_jax import globs
from vlm_jax.convert.towers import tower_shapes
from vlm_jax.models.layers import Compute
from vlm_jax.models.vision_transformer import VisionTransformer
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
    rng = np.random.default_rng(2)
    ours, its = (
        globs.unflatten({path: rng.standard_normal(shape) for path, shape in tower_shapes(vision).items()})["vision"]
        for vision in (student, teacher)
    )
    kernel, bias = rng.standard_normal((12, 24)).astype(np.float32), rng.standard_normal(24).astype(np.float32)
    trees = {"vision": ours, "teacher": {"vision": its}, "distillation": {"0": {"kernel": kernel, "bias": bias}}}
    batch = noise_batch(rows=2)
    real = batch.tile_grid[..., 0].reshape(-1) > 0

    @jax.jit
    def both(trees, batch):
        tiles = batch.patches.reshape(-1, *batch.patches.shape[2:])
        small, large = (
            VisionTransformer(vision, Compute()).apply({"params": tree}, tiles, capture=1)[1][0]
            for vision, tree in ((student, trees["vision"]), (teacher, trees["teacher"]["vision"]))
        )
        assert small.shape[1] == large.shape[1] + 1
        by_hand = cosine(small[:, 1:] @ kernel + bias, large).mean(axis=1)
        return DistillObjective(layers=1)(models, trees, batch, None), by_hand

    (loss, sums), by_hand = both(trees, batch)
    np.testing.assert_allclose(loss, -by_hand[real].sum(), rtol=1e-5)
    assert sums["weight"] == real.sum()
    assert np.std(by_hand) > 0.01
