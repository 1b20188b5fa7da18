"""`mlxgpt setup`: from a folder of code to a model that completes in it."""
