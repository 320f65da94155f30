"""How data sets are made of others: pure functions, and a command for each (`python -m vlm_jax.data.recipes`)."""
