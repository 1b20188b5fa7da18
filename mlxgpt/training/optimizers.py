"""AdamW as PyTorch runs it: bias-corrected, decoupled decay on matrices only; and Muon for the blocks' matrices."""

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map, tree_merge

from mlxgpt.config import OptimizerConfig
from mlxgpt.kernels import adamw_multi, compiled, dispatch, muon_multi

EMBEDDINGS = ("wte.", "wpe.", "embed_tokens.", "lm_head.")  # rows are tokens or positions: AdamW's, as in Muon's paper


def is_matrix(path: str, parameter: mx.array) -> bool:
    """Whether a parameter decays: embeddings and linear weights do, biases and norms do not."""
    return parameter.ndim >= 2


def is_hidden_matrix(path: str, parameter: mx.array) -> bool:
    """Whether Muon updates a parameter: the linear weights of the blocks."""
    return is_matrix(path, parameter) and not any(name in path for name in EMBEDDINGS)


def is_merged(path: str, parameter: mx.array) -> bool:
    """Whether a parameter is three matrices one above the other: GPT-2's queries, keys and values."""
    return path.endswith("c_attn.weight")


def _begin_step(optimizer: optim.Optimizer) -> None:
    for name, schedule in optimizer._schedulers.items():
        optimizer.state[name] = schedule(optimizer.step)
    optimizer.state["step"] = optimizer.step + 1


def _leaves(gradients: dict, parameters: dict, state: dict) -> list[tuple[mx.array, mx.array, dict]]:
    """Each gradient with its parameter and its state."""
    leaves: list[tuple[mx.array, mx.array, dict]] = []
    tree_map(lambda g, p, s: leaves.append((g, p, s)), gradients, parameters, state)
    return leaves


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

    def apply_gradients(self, gradients: dict, parameters: dict) -> dict:
        """The parameters after one step; their tree may be larger than the gradients'."""
        if not self._initialized:
            self.init(gradients)
        _begin_step(self)
        leaves = _leaves(gradients, parameters, self.state)
        updated = muon_multi.muon(
            [p for _, p, _ in leaves], [g for g, *_ in leaves], [state["m"] for *_, state in leaves],
            self.learning_rate * self.ratio, self.momentum, self.weight_decay, self.parts,
        )  # fmt: skip
        for (*_, state), (_, momentum) in zip(leaves, updated, strict=True):
            state["m"] = momentum
        rest = iter(updated)
        return tree_map(lambda _: next(rest)[0], gradients)


class AdamW(optim.AdamW):
    """MLX's AdamW, and its update of many tensors in few launches."""

    def apply_scaled(self, gradients: dict, parameters: dict, factor: mx.array) -> dict:
        """`apply_gradients` of the gradients times a factor, 0-d; the parameters' tree may be larger than theirs."""
        _begin_step(self)
        leaves = _leaves(gradients, parameters, self.state)
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
