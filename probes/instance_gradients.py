"""How long the gradient of each instance is, exactly, from one forward and one backward of all instances together.

The backward pass gives every module the gradient d of its output, the forward pass its input a. The gradient of a
parameter for one instance is made of nothing else (t, u: places of the instance):

    linear      G = sum_t d_t a_t'         |G|^2 of G itself, or as sum_tu (a_t . a_u) (d_t . d_u): whichever is cheaper
    embedding   d_t, in the row of token t     equal tokens of the instance are added up first
    norm        sum_t d_t * x_t            x_t: the normalized input
    bias        sum_t d_t
    tied        |E + L|^2 = |E|^2 + |L|^2 + 2 <E, L>: embedding and output projection that share one weight

The gradients of the weights themselves are left out of that pass, which pays for most of this.

Sources for the second form of |G|^2: Goodfellow, arXiv 1510.01799; Li et al., arXiv 2110.05679 ("ghost norm").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NoReturn

import torch
from torch import nn
from torch.func import functional_call

from data_index.errors import UnsupportedRecipe
from probes.instance_products import (
    bias_squares,
    embedding_squares,
    linear_squares,
    norm_squares,
    output_gradients_at,
    tied_products,
)


def instance_gradient_norms(model: nn.Module, loss: Callable[[], torch.Tensor]) -> torch.Tensor:
    """L2 norm of the gradient of each instance's part of a loss, fp64 of shape [rows].

    Args and errors are those of `squared_norms_by_parameter`.
    """
    return torch.stack(list(squared_norms_by_parameter(model, loss).values())).sum(dim=0).sqrt()


def squared_norms_by_parameter(model: nn.Module, loss: Callable[[], torch.Tensor]) -> dict[str, torch.Tensor]:
    """|g_i|^2 of each instance, fp64 of shape [rows], by the name of the parameter; only of parameters that learn.

    Held in memory besides: no more than a plain backward pass holds, which keeps the same inputs; then temporary
    tensors of one module at a time (`probes.instance_products`), and for tied weights [rows, length, length]. What the
    parameters have in `.grad` stays as it is.

    Args:
        loss: runs the model on all instances and returns the sum of their losses, weighted as they are to be, 0-d. The
            first dimension of each module's input is the instance; no module is used twice.
    Raises:
        UnsupportedRecipe: a module is of another kind, or used in another way.
    """
    collector = Collector(model)
    with torch.enable_grad(), not_learning(model), collector.listening():
        total = loss()
    total.backward()
    return collector.result()


@contextmanager
def not_learning(model: nn.Module) -> Iterator[None]:
    """No parameter takes part in the graphs that are built inside the block."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


class Collector:
    """Squared norms of one pass, taken from each module as soon as the gradient of its output is there.

    Attributes:
        names: of the parameters that learn, by identity. modules: those that own them, with their names.
        partners: of an embedding and an output projection that share their weight, each one's other.
        inputs: what each module read, until its gradient comes.
        awaited: by embedding, what its tied output projection left for it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
        self.modules = {module: name for name, module in model.named_modules() if self.learning_in(module)}
        for module in self.modules:
            if not is_known(module):
                self.refuse(module, "one instance's part of its gradient is known for linear layers, embeddings, norms")
        self.partners = self.tied_pairs()
        self.num_rows, self.device = 0, torch.device("cpu")
        self.inputs: dict[nn.Module, torch.Tensor] = {}
        self.awaited: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
        self.squares: dict[str, torch.Tensor] = {}

    def learning_in(self, module: nn.Module) -> list[str]:
        """The module's own parameters that learn: `weight`, `bias`."""
        return [attribute for attribute, p in module.named_parameters(recurse=False) if id(p) in self.names]

    def refuse(self, module: nn.Module, reason: str) -> NoReturn:
        raise UnsupportedRecipe(
            f"gradient norms of single instances: module {self.modules[module]} ({type(module).__name__}): {reason}. A "
            "backward pass of each instance alone gives them"
        )

    def tied_pairs(self) -> dict[nn.Module, nn.Module]:
        users: dict[int, list[nn.Module]] = {}
        for module in self.modules:
            for attribute in self.learning_in(module):
                users.setdefault(id(getattr(module, attribute)), []).append(module)
        shared = [modules for modules in users.values() if len(modules) > 1]
        for modules in shared:
            if {type(module) for module in modules} != {nn.Embedding, nn.Linear} or len(modules) > 2:
                self.refuse(modules[-1], f"it shares a parameter with {self.modules[modules[0]]}")
        return {one: other for pair in shared for one, other in (pair, pair[::-1])}

    @contextmanager
    def listening(self) -> Iterator[None]:
        handles = [module.register_forward_hook(self.after_forward) for module in self.modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def after_forward(self, module: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if module in self.inputs:
            self.refuse(module, "it is used more than once")
        inputs = arguments[0]
        self.num_rows, self.device = self.num_rows or len(inputs), output.device
        if len(inputs) != self.num_rows:
            self.refuse(module, f"it reads {len(inputs)} rows where the first module read {self.num_rows}")
        if not output.requires_grad:
            output.requires_grad_()  # with frozen weights, graphs begin here
        self.inputs[module] = inputs
        output.register_hook(partial(self.after_backward, module, inputs._version))

    def after_backward(self, module: nn.Module, version: int, gradient: torch.Tensor) -> None:
        inputs = self.inputs[module]
        if inputs._version != version:
            self.refuse(module, "what it read was changed in place afterwards")
        d = by_place(gradient)
        for attribute in self.learning_in(module):
            squares = bias_squares(d) if attribute == "bias" else self.weight_squares(module, inputs, d)
            name = self.names[id(getattr(module, attribute))]
            self.squares[name] = self.squares[name] + squares if name in self.squares else squares
        self.inputs[module] = inputs.new_empty(0)  # let go of; a tied output projection's gradient comes first

    def weight_squares(self, module: nn.Module, inputs: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        """|g_i|^2 of a weight; of a tied one, this module's part of it."""
        partner = self.partners.get(module)
        if isinstance(module, nn.Linear):
            a = by_place(inputs)
            if partner is not None:
                self.awaited[partner] = a, output_gradients_at(self.inputs[partner].flatten(1), d)
            return linear_squares(a, d)
        if isinstance(module, nn.Embedding):
            token_ids = inputs.flatten(1)
            if module.padding_idx is not None:
                d = d * (token_ids != module.padding_idx)[..., None]
            squares = embedding_squares(token_ids, d)
            return squares + 2 * tied_products(*self.awaited.pop(module), d) if module in self.awaited else squares
        return norm_squares(by_place(normalized(module, inputs)), d)

    def result(self) -> dict[str, torch.Tensor]:
        """In the model's order; 0 for what got no gradient."""
        for module in self.modules:
            if module not in self.inputs:
                self.refuse(module, "the loss was computed without it, or with its parameters outside of it")
        nothing = torch.zeros(self.num_rows, dtype=torch.float64, device=self.device)
        # The parts of a tied weight may cancel, and round to less than 0.
        return {name: self.squares.get(name, nothing).clamp(min=0.0) for name in self.names.values()}


def is_known(module: nn.Module) -> bool:
    if type(module) is nn.Embedding:
        return module.max_norm is None and not module.scale_grad_by_freq
    return type(module) is nn.Linear or is_norm(module)


def is_norm(module: nn.Module) -> bool:
    """Its output is the normalized input, times its weight, plus its bias if it has one."""
    own = dict(module.named_parameters(recurse=False))
    if not type(module).__name__.endswith(("RMSNorm", "LayerNorm")) or not {"weight"} <= set(own) <= {"weight", "bias"}:
        return False
    size = own["weight"].numel()
    line = torch.arange(1, size + 1).to(own["weight"]).view(1, 1, size)
    # Some multiply by 1 + weight.
    return own["weight"].dim() == 1 and not normalized(module, line, weight=0.0).any()


def normalized(module: nn.Module, inputs: torch.Tensor, weight: float = 1.0) -> torch.Tensor:
    """What a norm makes of its inputs with this weight throughout and no bias."""
    own = module.named_parameters(recurse=False)
    plain = {name: torch.full_like(p, weight if name == "weight" else 0.0) for name, p in own}
    with torch.no_grad():
        return functional_call(module, plain, (inputs,))


def by_place(tensor: torch.Tensor) -> torch.Tensor:
    """[rows, places, features] of [rows, …, features], at least in fp32."""
    flat = tensor.detach().reshape(len(tensor), -1, tensor.shape[-1])
    return flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat
