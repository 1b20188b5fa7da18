"""Recipes for `mlxgpt train --config NAME`."""
