"""A trained model at work: loading, prefill and cached decoding, sampling, chat."""
