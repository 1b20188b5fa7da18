"""AdamW as PyTorch runs it: bias-corrected, decoupled decay on matrices only; and Muon for the blocks' matrices."""

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map, tree_merge

from mlxgpt.config import OptimizerConfig
from mlxgpt.kernels import adamw_multi, compiled, dispatch

EMBEDDINGS = ("wte.", "wpe.", "embed_tokens.", "lm_head.")  # rows are tokens or positions: AdamW's, as in Muon's paper
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al., kellerjordan.github.io/posts/muon (2024)


def is_matrix(path: str, parameter: mx.array) -> bool:
    """Whether a parameter decays: embeddings and linear weights do, biases and norms do not."""
    return parameter.ndim >= 2


def is_hidden_matrix(path: str, parameter: mx.array) -> bool:
    """Whether Muon updates a parameter: the linear weights of the blocks."""
    return is_matrix(path, parameter) and not any(name in path for name in EMBEDDINGS)


def is_merged(path: str, parameter: mx.array) -> bool:
    """Whether a parameter is three matrices one above the other: GPT-2's queries, keys and values."""
    return path.endswith("c_attn.weight")


def orthogonalize(gradient: mx.array, steps: int = 5) -> mx.array:
    """Nearly the closest matrix with orthonormal rows or columns: float [..., M, N], singular values in 0.7 to 1.2.

    The quintic Newton–Schulz iteration with the coefficients of NEWTON_SCHULZ, in float32.
    """
    a, b, c = NEWTON_SCHULZ
    tall = gradient.shape[-2] > gradient.shape[-1]
    x = gradient.astype(mx.float32)
    x = x.swapaxes(-1, -2) if tall else x
    x = x / (mx.sqrt(x.square().sum((-2, -1), keepdims=True)) + 1e-7)
    for _ in range(steps):
        square = x @ x.swapaxes(-1, -2)
        x = a * x + (b * square + c * (square @ square)) @ x
    return x.swapaxes(-1, -2) if tall else x


class Muon(optim.Optimizer):
    """Nesterov momentum, orthogonalized (Jordan et al., 2024), with decoupled decay (arXiv 2502.16982).

    MLX's own couples the decay into the gradient, where it turns the step and does not shrink the weights. `ratio` is
    its rate over `learning_rate`, which it shares with AdamW and its schedule. Each parameter is `parts` matrices of
    the same size, one above the other.
    """

    def __init__(self, learning_rate: float, ratio: float, momentum: float, weight_decay: float, parts: int) -> None:
        super().__init__()
        self._maybe_schedule("learning_rate", learning_rate)
        self.ratio, self.momentum, self.weight_decay, self.parts = ratio, momentum, weight_decay, parts

    def init_single(self, parameter: mx.array, state: dict) -> None:
        """The momentum of one matrix, float32, starts at 0."""
        state["m"] = mx.zeros_like(parameter)

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        """One matrix [M, N] after this step."""
        rate = self.learning_rate * self.ratio
        state["m"] = self.momentum * state["m"] + (1 - self.momentum) * gradient
        look_ahead = self.momentum * state["m"] + (1 - self.momentum) * gradient
        rows, columns = parameter.shape
        height = rows // self.parts
        update = orthogonalize(look_ahead.reshape(self.parts, height, columns)).reshape(rows, columns)
        scale = max(1.0, height / columns) ** 0.5
        return parameter * (1 - rate * self.weight_decay) - rate * scale * update


class AdamW(optim.AdamW):
    """MLX's AdamW, and its update of many tensors in few launches."""

    def apply_scaled(self, gradients: dict, parameters: dict, factor: mx.array) -> dict:
        """`apply_gradients` of the gradients times a factor, 0-d; the parameters' tree may be larger than theirs."""
        for name, schedule in self._schedulers.items():
            self.state[name] = schedule(self.step)
        self.state["step"] = self.step + 1
        leaves: list[tuple[mx.array, mx.array, dict]] = []
        tree_map(lambda g, p, state: leaves.append((g, p, state)), gradients, parameters, self.state)
        grads, params, states = zip(*leaves, strict=True) if leaves else ((), (), ())
        updated = adamw_multi.adamw(
            params, grads, [s["m"] for s in states], [s["v"] for s in states], factor, self.learning_rate, self.step,
            self.betas, self.eps, self.weight_decay,
        )  # fmt: skip
        for state, (_, first, second) in zip(states, updated, strict=True):
            state["m"], state["v"] = first, second
        rest = iter(updated)
        return tree_map(lambda _: next(rest)[0], gradients)


def clip_and_apply(
    optimizer: optim.Optimizer, gradients: dict, parameters: dict, clip: float
) -> tuple[dict, mx.array]:  # fmt: skip
    """The parameters after one step, and the gradients' global norm before they are clipped to `clip`, 0 for never.

    The norm and AdamW take many tensors a launch. The optimizer must have been initialized.
    """
    if not dispatch.use_kernel("adamw_multi") and compiled.load("adamw_multi") is None:
        clipped, norm = optim.clip_grad_norm(gradients, clip)
        return optimizer.apply_gradients(clipped if clip > 0 else gradients, parameters), norm
    norm = adamw_multi.global_norm(list(dict(tree_flatten(gradients)).values()))
    factor = mx.minimum(clip / (norm + 1e-6), 1.0) if clip > 0 else mx.array(1.0)
    return _apply(optimizer, gradients, parameters, factor), norm


def _apply(optimizer: optim.Optimizer, gradients: dict, parameters: dict, factor: mx.array) -> dict:
    if isinstance(optimizer, optim.MultiOptimizer):
        tree: dict = {}
        for one, part in zip(optimizer.optimizers, optimizer._split_dictionary(gradients), strict=True):
            tree = tree_merge(tree, _apply(one, part, parameters, factor))
        return tree
    if isinstance(optimizer, AdamW):
        return optimizer.apply_scaled(gradients, parameters, factor)
    return optimizer.apply_gradients(tree_map(lambda g: (g * factor).astype(g.dtype), gradients), parameters)


def make(config: OptimizerConfig) -> optim.Optimizer:
    """The optimizer of a recipe; its learning rate is set at every step."""

    def adamw(weight_decay: float) -> AdamW:
        betas = [config.beta1, config.beta2]
        return AdamW(config.lr, betas, config.eps, weight_decay=weight_decay, bias_correction=True)

    def muon(parts: int) -> Muon:
        return Muon(config.lr, config.muon_lr / config.lr, config.muon_momentum, config.weight_decay, parts)

    if config.kind == "adamw":
        return optim.MultiOptimizer([adamw(config.weight_decay), adamw(0.0)], [is_matrix])
    kinds = [muon(3), muon(1), adamw(config.weight_decay), adamw(0.0)]
    return optim.MultiOptimizer(kinds, [is_merged, is_hidden_matrix, is_matrix])
