"""Augmentation: `host` works on one image in NumPy, `device` on a batch inside the jitted step; `parse` reads specs."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from imgcls_jax.types import ConfigError, nearest


def parse(key: str, calls: Sequence[str], table: Mapping[str, Any], *, size: int = 0) -> list[Any]:
    """Builds what a list of calls such as ("random_resized_crop(scale=(0.2, 1))", "flip()") names.

    Args:
      key: the config key the calls come from, for the error message.
      calls: each a name, optionally with literal arguments; nothing is evaluated.
      table: name -> class.
      size: pixels of the result, for classes that have a `size` and calls that do not say it.

    Raises:
      ConfigError: for a call that does not parse, an unknown name or an argument the class does not take.
    """
    return [_parse_one(key, call, table, size) for call in calls]


def _parse_one(key: str, call: str, table: Mapping[str, Any], size: int) -> Any:
    try:
        node = ast.parse(call, mode="eval").body
        name = node.func if isinstance(node, ast.Call) else node
        args = [ast.literal_eval(arg) for arg in node.args] if isinstance(node, ast.Call) else []
        pairs = node.keywords if isinstance(node, ast.Call) else []
        kwargs = {str(pair.arg): ast.literal_eval(pair.value) for pair in pairs}
        if not isinstance(name, ast.Name):
            raise ValueError
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{key}: '{call}' is not a call like \"name(1, option=2)\".") from error
    if name.id not in table:
        raise ConfigError(f"{key}: unknown '{name.id}'{nearest(name.id, list(table))}; choices: {', '.join(table)}.")
    if size and not args and "size" in getattr(table[name.id], "__dataclass_fields__", ()):
        kwargs.setdefault("size", size)
    signature = inspect.signature(table[name.id])
    try:
        signature.bind(*args, **kwargs)  # its errors name the argument, and not a Python method
        return table[name.id](*args, **kwargs)
    except ValueError as error:
        raise ConfigError(f"{key}: '{call}': {error}.") from error
    except (TypeError, LookupError) as error:  # an argument is missing, unknown, or a string where a number is needed
        takes = ", ".join(str(p.replace(annotation=p.empty)) for p in signature.parameters.values())
        raise ConfigError(f"{key}: '{call}': {error}; {name.id} takes ({takes}).") from error
