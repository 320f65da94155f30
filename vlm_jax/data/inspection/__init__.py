"""What `vlm_jax.data.check` and `vlm_jax.data.show` are made of."""
