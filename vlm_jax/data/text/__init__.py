"""From text to token ids: chat templates and tokenizers."""
