"""Generation with a static cache: one compiled prefill, one compiled loop that writes tokens until every row is done.

Sizes are rounded up (`bucket`), so that few programs are compiled; what is padding is never attended to, so rounding
changes no result.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.batch import Batch
from vlm_jax.models.attention import KVCache
from vlm_jax.models.decoder import empty_caches
from vlm_jax.models.vlm import VLM


class Sampling(NamedTuple):
    """How the next token is chosen.

    Attributes:
      temperature: 0 takes the most likely token; otherwise logits are divided by it.
      top_p: only the most likely tokens that together reach this probability are drawn from.
      seed: equal seeds give equal tokens.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


GREEDY = Sampling()


def bucket(size: int, smallest: int) -> int:
    """The least of `smallest` * {1, 1.5, 2, 3, 4, 6, 8, ...} that is not below `size`: at most a third is padding."""
    whole = smallest
    while whole < size:
        if whole * 3 // 2 >= size:
            return whole * 3 // 2
        whole *= 2
    return whole


def generate(
    model: VLM, params: Any, batch: Batch, limits: np.ndarray, stop_id: int, sampling: Sampling = GREEDY
) -> list[list[int]]:
    """Continues every row of a batch.

    Args:
      model: the network.
      params: its parameters.
      batch: one conversation a row, padded on the right; a row of padding only is left alone.
      limits: int [B], the most tokens to write in each row, at least 1.
      stop_id: the token that ends an answer.
      sampling: how tokens are chosen.

    Returns:
      For every row the new tokens, without the stop token.
    """
    lengths = np.asarray(batch.segments > 0).sum(axis=1).astype(np.int32)
    most = bucket(int(np.max(limits)), 16)
    slots = batch.tokens.shape[1] + most
    # Padding gets a position past the cache: it is never written there, so nothing can attend to it.
    batch = batch._replace(positions=np.where(np.asarray(batch.segments) > 0, batch.positions, slots), extras={})
    limits = np.where(lengths > 0, limits, 0).astype(np.int32)
    first, caches = _prefill(model, slots, params, batch, lengths)
    tokens, counts, _ = _decode(
        model, most, sampling.temperature <= 0, params, first, caches, lengths, limits, stop_id, _knobs(sampling)
    )
    return [row[:count].tolist() for row, count in zip(np.asarray(tokens), np.asarray(counts), strict=True)]


def _knobs(sampling: Sampling) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What `_choose` needs as traced values, so that another temperature compiles nothing."""
    return (
        jnp.float32(max(sampling.temperature, 1e-6)),
        jnp.float32(sampling.top_p),
        jax.random.key(sampling.seed),
    )


@partial(jax.jit, static_argnums=(0, 1))
def _prefill(
    model: VLM, slots: int, params: Any, batch: Batch, lengths: Int[Array, " B"]
) -> tuple[Float[Array, "B V"], list[KVCache]]:
    """Fills the caches with the prompts; returns the logits after each prompt's last token."""
    decoder = model.config.decoder
    caches = empty_caches(decoder, batch.tokens.shape[0], slots, model.compute.dtype)
    hidden, caches = model.apply({"params": params}, batch, caches, method=VLM.prefill)
    last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)
    return model.apply({"params": params}, last, method=_logits)[:, 0], caches


def _logits(model: VLM, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    return model.decoder.logits(hidden)


class _State(NamedTuple):
    """Of the loop: `step` tokens of each row are decided, `token` is the last of them."""

    step: Int[Array, ""]
    token: Int[Array, " B"]
    done: Bool[Array, " B"]
    counts: Int[Array, " B"]
    tokens: Int[Array, "B M"]
    caches: list[KVCache]


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(5,))
def _decode(
    model: VLM,
    most: int,
    greedy: bool,
    params: Any,
    first: Float[Array, "B V"],
    caches: list[KVCache],
    lengths: Int[Array, " B"],
    limits: Int[Array, " B"],
    stop_id: Int[Array, ""],
    knobs: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[Int[Array, "B M"], Int[Array, " B"], list[KVCache]]:
    """Writes tokens until every row has stopped or reached its limit. Returning the caches lets them be reused."""

    def add(state: _State, logits: Float[Array, "B V"], caches: list[KVCache]) -> _State:
        token = _choose(logits, greedy, knobs, state.step)
        done = state.done | (token == stop_id)
        counts = state.counts + ~done
        tokens = state.tokens.at[:, state.step].set(jnp.where(done, 0, token))
        return _State(state.step + 1, token, done | (counts >= limits), counts, tokens, caches)

    def step(state: _State) -> _State:
        # The last chosen token stands at the position before the one that is now decided.
        positions = (lengths + state.step - 1)[:, None]
        logits, caches = model.apply(
            {"params": params}, state.token[:, None], positions, state.caches, method=VLM.decode
        )
        return add(state, logits, caches)

    rows = lengths.shape[0]
    zeros = jnp.zeros(rows, jnp.int32)
    start = _State(jnp.int32(0), zeros, limits <= 0, zeros, jnp.zeros((rows, most), jnp.int32), caches)
    final = jax.lax.while_loop(lambda s: (s.step < most) & ~jnp.all(s.done), step, add(start, first, caches))
    return final.tokens, final.counts, final.caches


def _choose(
    logits: Float[Array, "B V"], greedy: bool, knobs: tuple[jax.Array, jax.Array, jax.Array], step: jax.Array
) -> Int[Array, " B"]:
    """The next token of every row; a row's draw depends on the seed, the step and the row's number alone."""
    if greedy:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    temperature, top_p, key = knobs
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, step)))(jnp.arange(logits.shape[0]))
    logits = keep_top_p(logits / temperature, top_p)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def keep_top_p(logits: Float[Array, "B V"], top_p: float | jax.Array) -> Float[Array, "B V"]:
    """Nucleus sampling (Holtzman et al. 2020): -inf for all but the fewest tokens that together reach `top_p`."""
    ordered = jnp.sort(logits, axis=-1, descending=True)
    before = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1) - jax.nn.softmax(ordered, axis=-1)
    # The most likely token always stays; top_p >= 1 keeps all, whatever the rounding of the sum.
    kept = (before < top_p) | (jnp.arange(logits.shape[-1]) == 0) | (jnp.asarray(top_p) >= 1)
    least = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= least, logits, -jnp.inf)
