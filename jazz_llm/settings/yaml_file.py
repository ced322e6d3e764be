"""A YAML file -> settings.

It is read as nodes, which know the line and the text as it is written: a model 1.10 is no number, and an api_key 0123 not 83.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..config import suggestion
from ..errors import LLMConfigurationError
from .fields import ALIASES, FIELDS, LIVE, NAMES, TEXTS, Words, is_live, json, parts, secret, words

if TYPE_CHECKING:
    import yaml

MAX_BYTES = 2**20
MAX_NODES = 10_000  # with every alias written out: a few lines of aliases can stand for billions
_REFERENCE = re.compile(r"\$(\$?)\{(?:([A-Za-z_]\w*)(?::-([^{}]*))?\})?", re.ASCII)

Nodes = dict[str, Any]  # yaml.Node has no common ``value``


def import_yaml() -> Any:
    """Return PyYAML, or say how to get it."""
    try:
        import yaml
    except ImportError:
        pass
    else:
        return yaml
    raise LLMConfigurationError('Settings in YAML need PyYAML: pip install "jazz_llm[yaml]"')


def read_file(path: str | os.PathLike[str], section: str | None) -> Iterator[tuple[tuple[str, ...], Any, str]]:
    """Yield the path, the value and the line of each setting: those at the top of a file, then those of one section."""
    file = _File(path)
    shared, sections = file.parts()
    for pairs in (shared, *map(file.pairs, sections.values())):
        file.check_names(pairs)
    if section is None and "default" in sections:
        section = "default"
    if section is not None and section not in sections:
        raise LLMConfigurationError(f"section: {file.name} has no {section!r}, but {', '.join(sections) or 'none at all'}.")
    if section is None and not shared:
        raise LLMConfigurationError(f"section: {file.name} has sections only; pass one of {', '.join(sections)}.")
    yield from file.settings(shared)
    if section is not None:
        yield from file.settings(file.pairs(sections[section]))


def sections_of(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return what can be read of a file: its sections, and "default" for what stands at its top."""
    shared, sections = _File(path).parts()
    return tuple(dict.fromkeys((*(["default"] if shared else []), *sections)))


class _File:
    """A file that was read and found to be a mapping."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        self._yaml = import_yaml()
        try:
            self._loader = self._yaml.SafeLoader(_text_of(self.name))
            self.root: yaml.Node | None = self._loader.get_single_node()
        except self._yaml.YAMLError as error:
            reason = _reason(error)
        else:
            self._check()
            return
        raise LLMConfigurationError(f"{self.name} is not YAML: {reason}.")

    def _check(self) -> None:
        if self.root is None:
            raise LLMConfigurationError(f"{self.name} is empty.")
        if not self.is_mapping(self.root):
            raise LLMConfigurationError(f"{self.name} must hold settings, such as `model: gpt-4o-mini`.")
        if self._size(self.root, {}) > MAX_NODES:
            raise LLMConfigurationError(f"{self.name} holds more than {MAX_NODES} values, its aliases written out.")

    def _size(self, node: Any, known: dict[int, float]) -> float:
        """Return how many values a node holds with every alias written out: no end of them where it holds itself."""
        if isinstance(node.value, str):
            return 1
        if id(node) not in known:
            known[id(node)] = math.inf  # as long as its parts are counted
            self._check_collection(node)
            nodes = (part for each in node.value for part in (each if isinstance(each, tuple) else (each,)))
            known[id(node)] = 1 + sum(self._size(part, known) for part in nodes)
        return known[id(node)]

    def _check_collection(self, node: Any) -> None:
        if not node.tag.endswith((":map", ":seq")):
            raise LLMConfigurationError(f"{self.line(node)}: {node.tag} cannot stand here.")
        names: set[str] = set()
        for key in (pair[0] for pair in node.value if isinstance(pair, tuple)):
            if not isinstance(key.value, str):
                raise LLMConfigurationError(f"{self.line(key)}: a name must be text.")
            if key.value in names:
                raise LLMConfigurationError(f"{self.line(key)}: {key.value!r} is there twice.")
            names.add(key.value)

    def is_mapping(self, node: Any) -> bool:
        """Say whether a node has names in it."""
        return isinstance(node, self._yaml.MappingNode)

    def is_section(self, node: Any) -> bool:
        """Say whether a node can be a section: a mapping, or nothing."""
        return self.is_mapping(node) or _is_empty(node)

    def parts(self) -> tuple[Nodes, Nodes]:
        """Return the settings at the top, which all sections share, and the sections."""
        top = self.pairs(self.root)
        sections = {name: node for name, node in top.items() if name not in (*NAMES, *LIVE) and self.is_section(node)}
        return {name: node for name, node in top.items() if name not in sections}, sections

    def line(self, node: Any) -> str:
        """Return where a node begins."""
        return f"{self.name}, line {node.start_mark.line + 1}"

    def pairs(self, node: Any) -> Nodes:
        """Return the nodes in a mapping by their names, also those that ``<<`` brings in; of nothing none."""
        if not self.is_mapping(node):
            return {}
        try:
            self._loader.flatten_mapping(node)
        except self._yaml.YAMLError as error:
            reason = _reason(error)
        else:
            return {key.value: part for key, part in node.value}
        raise LLMConfigurationError(f"{self.name} is not YAML: {reason}.")

    def check_names(self, pairs: Nodes) -> None:
        """Refuse what is not a setting."""
        for name, node in pairs.items():
            if name not in NAMES:
                raise LLMConfigurationError(
                    f"{self.line(node)}: {name!r} is not a setting. {is_live(name) or suggestion(name, NAMES)}"
                )

    def settings(self, pairs: Nodes) -> Iterator[tuple[tuple[str, ...], Any, str]]:
        """Yield the path, the value and the line of each, a whole before its parts."""
        found: dict[tuple[str, ...], str] = {}
        for name in sorted(pairs, key=lambda name: len(ALIASES.get(name, ""))):
            path, node = ALIASES.get(name, (name,)), pairs[name]
            if found.setdefault(path, name) != name:
                raise LLMConfigurationError(f"{self.line(node)}: {found[path]} and {name} say the same: keep one of them.")
            if not self._is_left_out(node):
                yield path, self._value(path, node), self.line(node)

    def _is_left_out(self, node: Any) -> bool:
        """Say whether a name has no value, or that of a variable that is set to nothing."""
        if not isinstance(node.value, str):
            return False
        return _is_empty(node) or ("${" in node.value and not self._filled(node).strip())

    def _value(self, path: tuple[str, ...], node: Any) -> Any:
        kind = FIELDS[path[0]]
        if not callable(kind):
            return kind[path[1]](self._plain(node)) if len(path) == 2 else parts(kind, self._parts(node, self._plain))
        if path[0] in TEXTS:
            return self._parts(node, self._written)
        return kind(self._written(node) if kind in (words, secret) else self._plain(node))

    def _parts(self, node: Any, read: Callable[[Any], Any]) -> Any:
        """Return the parts of a mapping that are not left out; of anything else what it says."""
        if not self.is_mapping(node):
            return json(self._plain(node))
        return {name: read(part) for name, part in self.pairs(node).items() if not self._is_left_out(part)}

    def _written(self, node: Any) -> Any:
        """Return a text as it is written, whatever YAML would take it for."""
        is_text = isinstance(node.value, str) and not node.tag.endswith(":null")
        return str(self._filled(node)) if is_text else self._plain(node)

    def _plain(self, node: Any) -> Any:
        """Return what a node says, variables filled in."""
        if self.is_mapping(node):
            return {name: self._plain(part) for name, part in self.pairs(node).items()}
        if not isinstance(node.value, str):
            return [self._plain(part) for part in node.value]
        return self._filled(node) if node.tag.endswith(":str") else self._made(node)

    def _made(self, node: Any) -> Any:
        try:
            return self._loader.construct_object(node)
        except (self._yaml.YAMLError, ValueError):
            pass
        raise LLMConfigurationError(f"{self.line(node)}: {node.tag} cannot stand here, or is not this.")

    def _filled(self, node: Any) -> str:
        """Return a text with its variables filled in, as ``Words`` where it is nothing but one; ``$${`` stands for ``${``."""

        def value(match: re.Match[str]) -> str:
            escaped, name, default = match.groups()
            if escaped:
                return match[0][1:]
            if name is None:
                raise LLMConfigurationError(f"{self.line(node)}: write ${{NAME}} or ${{NAME:-default}}; $${{ stands for ${{.")
            if name not in os.environ and default is None:
                raise LLMConfigurationError(f"{self.line(node)}: the variable {name} is not set.")
            return os.environ.get(name) or default or ""

        whole = _REFERENCE.fullmatch(node.value)
        text = _REFERENCE.sub(value, node.value)
        return Words(text) if whole and not whole[1] else text


def _is_empty(node: Any) -> bool:
    return node.value == "" and bool(node.tag.endswith(":null"))


def _text_of(name: str) -> str:
    try:
        with open(name, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        reason = "is not UTF-8 text"
    except (OSError, ValueError) as error:
        reason = f"cannot be read: {getattr(error, 'strerror', None) or error}"
    else:
        if len(data) <= MAX_BYTES:
            return text
        reason = f"has more than {MAX_BYTES} bytes"
    raise LLMConfigurationError(f"{name} {reason}.")


def _reason(error: Any) -> str:
    """Say what is wrong with a file, and where, without what is written there."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "it holds a character that YAML forbids"
    problem = re.sub(r"(['\"])(?!<).{4,}\1", "...", str(problem))
    return f"line {mark.line + 1}: {problem}" if mark else str(problem)
