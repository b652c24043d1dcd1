"""Recipes: YAML text to a validated pipeline, with positions for errors; running it, step by step, cached."""
