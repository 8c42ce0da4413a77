"""The same numbers sooner: shared prefixes, prompts read once, vLLM."""
