"""YAML files that a user wrote: read within bounds, so that none hangs, and none says another thing than it shows."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from text_sdft.core.errors import UserError, first_line

#: No config that a person wrote is larger; values that aliases repeat count as often as they stand.
KIB, VALUES = 128, 20_000


class _Loader(yaml.SafeLoader):
    """Refuses keys that stand twice, and aliases that repeat themselves without end. Executes no tag."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(
                    problem=f"'{name}' stands in line {seen[name]} already", problem_mark=key.start_mark
                )
            seen[name] = line
        return super().construct_mapping(node, deep)


def read_yaml(file: Path) -> Any:
    """What a YAML or JSON file holds.

    Raises:
        UserError: it is no file, too large, not valid, or has a key twice; with the line.
    """
    if not file.is_file():
        raise UserError(f"{file} is no file." if file.exists() else f"There is no file {file}.")
    try:
        if file.stat().st_size > KIB * 2**10:
            raise UserError(f"{file} is larger than {KIB} KiB: a config has settings only.")
        loader = _Loader(file.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, {}) > VALUES:
            raise UserError(
                f"{file} holds more than {VALUES:,} values, counted with what its aliases repeat: no config does."
            )
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise UserError(f"{file} is not valid YAML{line}: {error.problem}.") from error
    except RecursionError as error:
        raise UserError(f"{file} is nested too deeply to be a config.") from error
    except UserError:
        raise
    except Exception as error:  # what makes values of scalars and tags raises many kinds
        raise UserError(f"{file} is not valid YAML: {first_line(error)}") from error


def _count(node: yaml.Node, known: dict[int, float]) -> float:
    """Values below a node, those of an alias each time that it stands; endless where a value holds itself."""
    if id(node) not in known:
        known[id(node)] = float("inf")
        below = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = [part for pair in below for part in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(node)]
