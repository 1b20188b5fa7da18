"""`mlxgpt serve`: completion over HTTP, in the protocols that editors speak."""
