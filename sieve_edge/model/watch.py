"""Watches a model's forward and backward passes, and adds what it sees to the moments.

Dimension key: B batch, T tokens, N rows (tokens), D features of the side that is watched, O out_features.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from sieve_edge.artifacts import MatrixSpec
from sieve_edge.model.statistics import GRAM_TOKENS, Moments, narrow_side


@contextmanager
def watch_grams(
    model: Any,
    specs: Sequence[MatrixSpec],
    sides: Mapping[str, Sequence[str]],
    moments: Moments,
    mask: Callable[[], Tensor],
    count: int = 1,
) -> Iterator[None]:
    """Add the Gram matrices of every forward pass inside the block.

    Args:
        model: Dense transformers model.
        specs: Its matrices.
        sides: Matrix name -> sides wanted, ``"input"`` or ``"output"``.
        moments: Where sums go, as ``gram.<matrix>.<side>``; the tokens are counted too.
        mask: Gives the mask of real tokens of the pass under way, bool, (B, T).
        count: How often each token counts.

    Yields:
        Nothing.

    Raises:
        ValueError: If the output of a stack of several modules is asked for.
    """
    handles = [model.register_forward_pre_hook(lambda *_: moments.add_scalar(GRAM_TOKENS, count * mask().sum()))]
    weight = count**0.5
    for spec in specs:
        module = model.get_submodule(spec.paths[0])
        if "input" in sides[spec.name]:
            name = f"gram.{spec.name}.input"
            handles.append(
                module.register_forward_pre_hook(lambda _, args, name=name: moments.add(name, weight * args[0][mask()]))
            )
        if "output" in sides[spec.name]:
            if len(spec.paths) > 1:
                raise ValueError(f"{spec.name}: the output Gram of a stack of several modules is never needed")
            name = f"gram.{spec.name}.output"
            handles.append(
                module.register_forward_hook(
                    lambda module, _, output, name=name: moments.add(
                        name, weight * _without_bias(module, output)[mask()]
                    )
                )
            )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def watch_fishers(model: Any, specs: Sequence[MatrixSpec], moments: Moments, weights_BT: Tensor) -> Iterator[None]:
    """Add the Fisher matrices of every backward pass inside the block.

    Before a non-linearity the moment is that of ``W^T g``, the loss's gradient at the shared input, which is
    ``W^T S W`` for the whole stack at the input's width; after one, that of ``g`` at the output. Positions
    without influence on the answer (padding) have a zero gradient and add nothing.

    The Gram matrix of the same side is gathered too, every token weighed by the energy of the gradient at its output:
    what a token's error costs depends on how much the answer depends on that token.

    Args:
        model: Dense transformers model.
        specs: Its matrices.
        moments: Where sums go, as ``fisher.<matrix>``, ``weighted_gram.<matrix>`` and, summed over outputs,
            ``fisher_trace.<matrix>`` of all tokens and ``last_energy.<matrix>`` of the prompts' last ones.
        weights_BT: How often each token of the pass counts, (B, T).

    Yields:
        Nothing.
    """
    handles = []
    for spec in specs:
        watcher = _FisherWatcher(spec, moments, weights_BT.flatten())
        modules = [model.get_submodule(path) for path in spec.paths]
        if watcher.narrow_input:
            handles.append(modules[0].register_forward_pre_hook(watcher.on_input))
        handles += [module.register_forward_hook(watcher.on_output) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _FisherWatcher:
    """Hooks of one matrix. All parts' outputs get their gradient before the input that they share gets its own."""

    def __init__(self, spec: MatrixSpec, moments: Moments, weights_N: Tensor) -> None:
        self.narrow_input = narrow_side(spec) == "input"
        self._name = spec.name
        self._moments = moments
        self._weights_N = weights_N
        self._energy_N: Tensor | None = None

    def on_input(self, _: Any, args: tuple[Tensor, ...]) -> None:
        rows_ND = args[0].detach().flatten(0, -2)
        args[0].register_hook(lambda gradient: self._add(rows_ND, gradient.flatten(0, -2)))

    def on_output(self, module: Any, _: Any, output: Tensor) -> None:
        rows_ND = None if self.narrow_input else _without_bias(module, output).detach().flatten(0, -2)

        def on_gradient(gradient: Tensor) -> None:
            rows_NO = gradient.flatten(0, -2)
            energy_N = rows_NO.square().sum(1)
            last = energy_N.view(gradient.shape[:-1])[:, -1].sum()
            self._moments.add_scalar(f"last_energy.{self._name}", last)
            self._energy_N = energy_N if self._energy_N is None else self._energy_N + energy_N
            if rows_ND is not None:
                self._add(rows_ND, rows_NO)

        output.register_hook(on_gradient)

    def _add(self, rows_ND: Tensor, gradient_ND: Tensor) -> None:
        energy_N = self._energy_N
        if energy_N is None:
            raise RuntimeError(f"{self._name}: its input got a gradient before its outputs did")
        self._energy_N = None
        energy_N = energy_N * self._weights_N
        self._moments.add(f"fisher.{self._name}", gradient_ND * self._weights_N.sqrt()[:, None])
        self._moments.add(f"weighted_gram.{self._name}", rows_ND * energy_N.sqrt()[:, None])
        self._moments.add_scalar(f"fisher_trace.{self._name}", energy_N.sum())


def _without_bias(module: Any, output: Tensor) -> Tensor:
    return output if module.bias is None else output - module.bias
