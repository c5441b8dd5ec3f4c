"""A device that is not the processor, made in Python: it refuses what CUDA refuses, where there is no GPU.

``far`` computes on the processor, so that results are those of the processor, but its tensors meet none of the
processor's and have no NumPy view. ``python -m tests.far_device ARGUMENTS`` is ``sieve-edge ARGUMENTS`` where
``device=far`` and ``device=far:1`` are there; it needs a process of its own, since torch keeps such a device.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as tree
from torch.utils import backend_registration
from torch.utils._device import _device_constructors

NAME = "far"
COUNT = 2
# CUDA takes these of the processor's tensors as indices.
_INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")


class Far(torch.Tensor):
    """A tensor on the device; ``near`` is what it holds, on the processor."""

    near: torch.Tensor

    @staticmethod
    def __new__(cls, near: torch.Tensor, device: torch.device) -> "Far":
        layout = {"strides": near.stride(), "storage_offset": near.storage_offset(), "dtype": near.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, near.shape, **layout, device=device)
        made.near = near
        return made

    def __repr__(self) -> str:
        return f"Far({self.near!r})"

    def tolist(self) -> Any:
        return self.near.tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        made = self.detach().clone()
        if isinstance(self, torch.nn.Parameter):
            made = torch.nn.Parameter(made, self.requires_grad)
        memo[id(self)] = made
        return made

    def storage(self) -> Any:
        return self.near.storage()

    def untyped_storage(self) -> Any:
        return self.near.untyped_storage()

    def data_ptr(self) -> int:
        return self.near.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # In inference mode even operators arrive that only consist of others.
        whole = function.decompose(*args, **(kwargs or {}))
        if whole is not NotImplemented:
            return whole
        with torch.inference_mode(False), torch.no_grad():
            return run(function, *args, **(kwargs or {}))


def run(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operator on what far tensors hold."""
    name = function._schema.name
    if name == "aten::_to_copy":
        return _move(args[0], **kwargs)
    if name in ("aten::copy_", "aten::_copy_from"):
        target, source = args[:2] if name == "aten::copy_" else args[1::-1]
        _near(target).copy_(_near(source))
        return target
    flat, shape = tree.tree_flatten((args, kwargs))
    tensors = [item for item in flat if isinstance(item, torch.Tensor)]
    device = _device(name, tensors, kwargs)
    for item in flat:
        if isinstance(item, torch.Generator):
            raise RuntimeError(f"{name}: expected a generator of {device}, found one of {item.device}")
    near_args, near_kwargs = tree.tree_unflatten([_near(item) for item in flat], shape)
    result = function(*near_args, **near_kwargs)
    # What is changed in place stays the tensor that it was.
    known = {id(item.near): item for item in tensors if isinstance(item, Far)}

    def put(each: torch.Tensor) -> torch.Tensor:
        return known[id(each)] if id(each) in known else _on(each, device)

    return tree.tree_map_only(torch.Tensor, put, result)


def _device(name: str, tensors: list[torch.Tensor], kwargs: dict[str, Any]) -> torch.device:
    """Find the one device of an operator's tensors, scalars of the processor aside."""
    checked = tensors
    if name in _INDEXED and isinstance(tensors[0], Far):
        checked = [item for item in tensors if item.dtype not in (torch.int64, torch.bool)]
    found = {item.device for item in checked if isinstance(item, Far) or item.dim()}
    if len(found) > 1:
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, found {sorted(map(str, found))}")
    asked = kwargs.get("device")
    return _indexed(asked) if asked is not None else found.pop() if found else tensors[0].device


def _move(source: torch.Tensor, *, dtype: Any = None, device: Any = None, memory_format: Any = None, **_: Any) -> Any:
    near = _near(source)
    form = torch.preserve_format if memory_format is None else memory_format
    moved = near.to(dtype=dtype or near.dtype, copy=True, memory_format=form)
    return _on(moved, source.device if device is None else device)


def _near(item: Any) -> Any:
    if isinstance(item, torch.device):
        return torch.device("cpu")
    return item.near if isinstance(item, Far) else item


def _indexed(device: Any) -> torch.device:
    asked = torch.device(device)
    return torch.device(asked.type, asked.index or 0) if asked.type == NAME else asked


def _on(near: torch.Tensor, device: Any) -> torch.Tensor:
    asked = _indexed(device)
    return Far(near, asked) if asked.type == NAME else near


def _made_near(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Make on the processor, then move: for functions that reach no device made in Python, or resize what they made."""

    def made(*args: Any, device: Any = None, **options: Any) -> torch.Tensor:
        tensor = make(*args, **options)
        return tensor if device is None else tensor.to(device)

    return made


class _Module(backend_registration._DummyBackendModule):
    def device_count(self) -> int:
        return COUNT

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def register() -> Any:
    """Make the device known to torch; what is returned has to be kept."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    # Identity of tied weights survives a move, as it does on CUDA.
    torch.__future__.set_swap_module_params_on_conversion(True)
    # It is remembered which functions `with torch.device(...)` means; those that are replaced must be among them.
    _device_constructors()
    for name in ("tensor", "eye"):
        setattr(torch, name, _made_near(getattr(torch, name)))
    library = torch.library.Library("_", "IMPL")
    library.fallback(run, "PrivateUse1")
    return library


def main(command: Callable[[], None]) -> None:
    """Run the command line with the device."""
    kept = register()
    command()
    del kept


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    from sieve_edge.cli import main as command

    main(command)
