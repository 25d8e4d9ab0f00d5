"""Recipes: one TOML file for every network of the papers' tables, and small ones on digits."""
