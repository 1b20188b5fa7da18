"""mlxgpt: train small code models on your own repository with MLX, run Mistral 7B, complete code."""

from mlxgpt import backend, native
from mlxgpt.kernels import compiled

__version__ = "0.1.0"

backend.prepare()  # before anything imports mlx
compiled.build = native.load
