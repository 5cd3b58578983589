"""A container of modules under free names.

Layer: nn.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView

from torch import nn

__all__ = ["NamedModules"]

_PREFIX = "m_"
_ESCAPES = (("%", "%25"), (".", "%2E"), ("$", "%24"))  # torch splits names at ".", Pyro at "$$$"


def _escape(name: str) -> str:
    for character, code in _ESCAPES:
        name = name.replace(character, code)
    return _PREFIX + name


def _unescape(key: str) -> str:
    name = key[len(_PREFIX) :]
    for character, code in reversed(_ESCAPES):
        name = name.replace(code, character)
    return name


class NamedModules(nn.Module):
    r"""
    A read-only mapping from modality names to modules; any non-empty string is a name.

    ``torch.nn.ModuleDict`` forbids dots and the names of its own methods. Here the key in the ``state_dict`` is a
    reversible escaping of the name: ``"rna.x"`` becomes ``"m_rna%2Ex"``.

    Example::

        >>> nets = NamedModules({"rna.x": nn.Linear(2, 3), "keys": nn.Identity()})
        >>> list(nets), nets["rna.x"].out_features, "type" in nets
        (['rna.x', 'keys'], 3, False)
        >>> list(nets.state_dict())
        ['m_rna%2Ex.weight', 'm_rna%2Ex.bias']

    :param modules: name -> module; the order is kept.
    :raises ValueError: if a name is empty or not a string.
    :raises TypeError: if a value is not an ``nn.Module``.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, module in modules.items():
            if not isinstance(name, str) or not name:
                raise ValueError(f"A modality name is a non-empty string, got {name!r}.")
            if not isinstance(module, nn.Module):
                raise TypeError(f"{name!r}: expected an nn.Module, got {type(module).__name__}.")
            self.add_module(_escape(name), module)

    def __getitem__(self, name: str) -> nn.Module:
        module = self._modules.get(_escape(name)) if isinstance(name, str) else None
        if module is None:
            raise KeyError(f"{name!r} is not one of {list(self)}")
        return module

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _escape(name) in self._modules

    def __iter__(self) -> Iterator[str]:
        return map(_unescape, self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def __bool__(self) -> bool:  # an empty container is still a module
        return True

    def _as_dict(self) -> dict[str, nn.Module]:
        return {name: self[name] for name in self}

    def keys(self) -> KeysView[str]:
        """Names, in order."""
        return self._as_dict().keys()

    def values(self) -> ValuesView[nn.Module]:
        """Modules, in order."""
        return self._as_dict().values()

    def items(self) -> ItemsView[str, nn.Module]:
        """Pairs of name and module, in order."""
        return self._as_dict().items()
