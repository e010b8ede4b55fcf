"""A model's matrix of variants, expanded to what is to be built. Pure."""
