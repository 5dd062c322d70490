"""Whether an entry script can work, found without running it (R2)."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator, Sequence

from prefect_parallelrun import checks
from prefect_parallelrun.config import ParallelRunConfig
from prefect_parallelrun.errors import EntryScriptError, refuse


def check_script(config: ParallelRunConfig) -> None:
    """Refuse an entry script that is not there, lies outside the source, or defines no `run`.

    Raises:
        ConfigError: the path cannot work.
        EntryScriptError: the script cannot be parsed, or defines no `run`.
    """
    source, script = config.source_folder, config.script_path
    if not source.is_dir():
        raise refuse("source_directory", config.source_directory, f"{source} is not a folder")
    if not script.is_file():
        found = "is not a file" if script.exists() else "does not exist"
        raise refuse("entry_script", config.entry_script, f"{script} {found}")
    if not script.is_relative_to(source):
        raise refuse(
            "entry_script", config.entry_script, f"it lies outside source_directory={source}"
        )
    if script.suffix != ".py":
        raise checks.unfit("entry_script", config.entry_script, "a Python file, ending with .py")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the script's own warnings are no errors of the step
            tree = ast.parse(script.read_bytes(), filename=str(script))
    except SyntaxError as error:
        if config.environment is not None and config.environment.python is not None:
            return  # its Python may be newer than this one, and knows more: the nodes will tell
        line = (error.text or "").strip()
        raise EntryScriptError(
            f"{script}, line {error.lineno}: {error.msg}" + (f"\n    {line}" if line else "")
        ) from None
    except (OSError, ValueError) as error:
        raise EntryScriptError(f"{script} cannot be read as a Python script: {error}") from error
    if any(
        isinstance(one, ast.AsyncFunctionDef) and one.name == "run" and not one.decorator_list
        for one in tree.body
    ):
        raise EntryScriptError(f"{script}: run() is async; it must be a plain function")
    if not any(name in ("run", "*") for name in _bound_names(tree.body)):
        raise EntryScriptError(
            f"{script} defines no run(): the entry script needs a function run(mini_batch) "
            "at its top level"
        )


def _bound_names(statements: Sequence[ast.stmt]) -> Iterator[str]:
    """Yield the names that a module's statements bind; `*` where any name may come in."""
    for statement in statements:
        match statement:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.ClassDef(name=name):
                yield name
            case ast.Assign(value=ast.Constant()):
                pass  # a constant is no function
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                yield from (alias.asname or alias.name for alias in aliases)
            case ast.Assign() | ast.AnnAssign() | ast.For() | ast.With():
                yield from _stored_names(statement)
        for inner in ("body", "orelse", "finalbody"):
            if not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield from _bound_names(getattr(statement, inner, []))
        for branch in (*getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
            yield from _bound_names(branch.body)


def _stored_names(statement: ast.stmt) -> Iterator[str]:
    """Yield the names to which an assignment, or the head of a loop or a `with`, gives a value."""
    heads: list[ast.expr] = []
    match statement:
        case ast.Assign(targets=targets):
            heads = targets
        case ast.AnnAssign(target=target, value=ast.expr()):
            heads = [target]
        case ast.For(target=target):
            heads = [target]
        case ast.With(items=items):
            heads = [item.optional_vars for item in items if item.optional_vars is not None]
    for head in heads:
        for node in ast.walk(head):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
