from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from jazz_llm import LLMResponse, LLMUsage, errors
from jazz_llm.errors import LLMError

CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, LLMError)]


def drawn_tree() -> dict[str, str]:
    """Read the tree in the module's docstring: class -> parent."""
    parents: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        name = line.strip("│├└─ ").split(" ")[0]
        if not name.startswith("LLM"):
            continue
        depth = line.index(name)
        path = [(d, n) for d, n in path if d < depth]
        parents[name] = path[-1][1] if path else "Exception"
        path.append((depth, name))
    return parents


def test_the_docstring_draws_the_tree_that_is_there() -> None:
    assert {cls.__name__: cls.__bases__[0].__name__ for cls in CLASSES} == drawn_tree()


def test_a_wrong_argument_is_a_value_error_too() -> None:
    assert issubclass(errors.LLMConfigurationError, ValueError)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))], ids=["copy", "deepcopy", "pickle"])
def test_every_error_pickles_and_copies(cls: type[LLMError], clone: object) -> None:
    error = cls("what went wrong", retryable=True, attempts=3, partial=LLMResponse(text="half", usage=LLMUsage(1, 2, 3)))
    twin = clone(error)  # type: ignore[operator]
    assert type(twin) is cls
    assert (str(twin), twin.message, twin.retryable, twin.attempts) == ("what went wrong", "what went wrong", True, 3)
    assert twin.partial == error.partial
    assert vars(twin) == vars(error)
