"""The import closure of a module within the repository: which of its files the code of a stage reads.

The spine (`pipeline/`) is left out: it runs the stages, and hands them nothing that is not in
their key already (see docs/decisions.md).
"""

import ast
import os
from collections.abc import Callable, Iterable
from pathlib import Path

PACKAGES = ("train", "deploy", "serve")


Import = tuple[int, str, list[str]]
"""The dots before a module's name, the name, and what is imported from it."""


def of(module: str, root: Path, imports: Callable[[Path], Iterable[Import]]) -> tuple[Path, ...]:
    """The files that `module` (dotted, as `train.fit`) imports, directly or not, sorted; its own among them.

    `imports` tells the imports of one file, as `parse` reads them from its text.
    """
    found: dict[str, Path | None] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        path = found[name] = _file(name, root)
        if path is None:
            continue
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        waiting += [
            name.rpartition(".")[0],
            *(m for entry in imports(path) for m in _modules(entry, package)),
        ]
    return tuple(sorted({path for path in found.values() if path}))


def parse(text: str) -> list[Import]:
    """The imports of a file, wherever in it they stand."""
    found: list[Import] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [(0, alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or "", [alias.name for alias in node.names]))
    return found


def _file(module: str, root: Path) -> Path | None:
    """The file of a module of the repository's packages; None for anything else."""
    if module.split(".")[0] not in PACKAGES:
        return None
    base = f"{root}/{module.replace('.', '/')}"
    # os.path, because this is asked thousands of times, and pathlib takes ten times as long
    return next((Path(p) for p in (f"{base}.py", f"{base}/__init__.py") if os.path.isfile(p)), None)  # noqa: PTH113


def _modules(entry: Import, package: str) -> list[str]:
    """The modules that an import may mean: the one named, and names in it that may be modules."""
    level, base, names = entry
    if level:
        above = package.split(".")[: len(package.split(".")) - level + 1]
        base = ".".join([*above, base] if base else above)
    return [base, *(f"{base}.{name}" for name in names)]
