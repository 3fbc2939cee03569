"""Where a config.json has its language model, if it is more than that."""

#: Names of parts that hold it, as transformers and authors of remote code have it.
TEXT_KEYS = (
    "text_config",
    "llm_config",
    "language_config",
    "thinker_config",
    "language_model_config",
    "text_model_config",
    "decoder_config",
    "llm",
)
