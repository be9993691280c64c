"""Reading and validating the code of an exercise: its stub, its check and its solution.

A stub is a typed function that ends with `raise NotImplementedError`, or a name set to the literal `...`. The
solution defines the same names with the same arguments, and the check and the solution call `check` with the
exercise's id and one of those names.
"""

from __future__ import annotations

import ast
from typing import NoReturn

from course_utils.errors import CourseError


def refuse(error: str, id: str, what: str, remedy: str) -> NoReturn:
    raise CourseError(error, f"Exercise {id} {what}.", where=f"the cells of exercise {id}", remedy=remedy)


def validate_code(id: str, stub: str, check: str, solution: str) -> None:
    """Refuse a stub without types or nothing to write, a solution that does not fit, a check of something
    else.
    """
    stub_tree, check_tree, solution_tree = (
        _parsed(source, id, part)
        for source, part in ((stub, "stub"), (check, "check"), (solution, "solution"))
    )
    functions, values = stubs_in(stub_tree), _ellipses(stub_tree)
    remedy = "end its function with `raise NotImplementedError`, or write `answer_01_3 = ...` for a value."
    if empty := [name for name, function in _functions(stub_tree).items() if _is_empty(function)]:
        refuse("exercise-stub", id, f"has a stub `{empty[0]}` that runs and gives nothing", remedy)
    if not functions and not values:
        refuse("exercise-stub", id, "has a stub that leaves nothing to write", remedy)
    solved = _functions(solution_tree)
    for name, function in functions.items():
        if untyped := _untyped(function):
            remedy = "type every parameter and the result of the stub."
            refuse("exercise-stub", id, f"has a stub `{name}` without types for {', '.join(untyped)}", remedy)
        if name not in solved:
            refuse("exercise-solution", id, f"has a solution that does not define `{name}`", "define it.")
        if not _same_signature(function, solved[name]):
            remedy = f"write `{_signature_text(function)}` as in the stub (types may be left out)."
            refuse("exercise-solution", id, f"has a solution with `{_signature_text(solved[name])}`", remedy)
    for name in values:
        if name not in _assigned(solution_tree):
            refuse("exercise-solution", id, f"has a solution that gives `{name}` no value", "assign it.")
    for part, tree in (("check", check_tree), ("solution", solution_tree)):
        _validate_check_call(id, part, tree, [*functions, *values])


def _parsed(source: str, id: str, part: str) -> ast.Module:
    try:
        return ast.parse(source)
    except SyntaxError as error:
        what = f"has a {part} that is not Python: {error.msg} in line {error.lineno}"
        refuse("exercise-syntax", id, what, "correct it; magics such as %time cannot stand in an exercise.")


def _functions(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    """The functions of a cell by name, and the methods of its classes as `Class.method`."""
    found = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    for owner in tree.body:
        if isinstance(owner, ast.ClassDef):
            methods = (node for node in owner.body if isinstance(node, ast.FunctionDef))
            found |= {f"{owner.name}.{method.name}": method for method in methods}
    return found


def raise_in(function: ast.FunctionDef) -> ast.Raise | None:
    """The `raise NotImplementedError` that ends a stub."""
    last = function.body[-1]
    raised = last.exc if isinstance(last, ast.Raise) else None
    raised = raised.func if isinstance(raised, ast.Call) else raised
    return last if isinstance(raised, ast.Name) and raised.id == "NotImplementedError" else None


def _is_empty(function: ast.FunctionDef) -> bool:
    """Whether a function has no statement but its docstring, `pass` or `...`: its check could not tell
    that it is untouched.
    """
    return all(
        isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in function.body
    )


def stubs_in(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    """The functions of a cell that are left to write."""
    return {name: function for name, function in _functions(tree).items() if raise_in(function)}


def _targets(node: ast.stmt) -> list[str]:
    targets = (
        node.targets
        if isinstance(node, ast.Assign)
        else [node.target]
        if isinstance(node, ast.AnnAssign)
        else []
    )
    names = [target.elts if isinstance(target, ast.Tuple) else [target] for target in targets]
    return [name.id for group in names for name in group if isinstance(name, ast.Name)]


def _assigned(tree: ast.Module) -> list[str]:
    return [name for node in tree.body for name in _targets(node)]


def _ellipses(tree: ast.Module) -> list[str]:
    """The names that a cell sets to the literal `...`."""
    return [
        name
        for node in tree.body
        if isinstance(value := getattr(node, "value", None), ast.Constant) and value.value is Ellipsis
        for name in _targets(node)
    ]


def _parameters(function: ast.FunctionDef) -> list[ast.arg]:
    spec = function.args
    return [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, *filter(None, (spec.vararg, spec.kwarg))]


def _untyped(function: ast.FunctionDef) -> list[str]:
    names = [p.arg for p in _parameters(function) if p.annotation is None and p.arg not in ("self", "cls")]
    return [*names, *(["the result"] if function.returns is None else [])]


def _same_signature(stub: ast.FunctionDef, solution: ast.FunctionDef) -> bool:
    """Whether two functions take the same arguments; a solution may leave out types, and may not change
    them.
    """
    if _without_types(stub) != _without_types(solution):
        return False
    pairs = [
        (p.annotation, q.annotation) for p, q in zip(_parameters(stub), _parameters(solution), strict=True)
    ]
    pairs.append((stub.returns, solution.returns))
    return all(
        theirs is None or ast.dump(mine) == ast.dump(theirs) for mine, theirs in pairs if mine is not None
    )


def _without_types(function: ast.FunctionDef) -> str:
    arguments = ast.parse(f"lambda {ast.unparse(_stripped(function.args))}: 0", mode="eval")
    return ast.dump(arguments)


def _stripped(arguments: ast.arguments) -> ast.arguments:
    copy = ast.parse(f"def f({ast.unparse(arguments)}): pass").body[0].args
    for parameter in ast.walk(copy):
        if isinstance(parameter, ast.arg):
            parameter.annotation = None
    return copy


def _signature_text(function: ast.FunctionDef) -> str:
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return f"def {function.name}({ast.unparse(function.args)}){returns}"


def _validate_check_call(id: str, part: str, tree: ast.Module, names: list[str]) -> None:
    """The cell must call `check` with this exercise's id and a name of its stub."""
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "check"
    ]
    remedy = f'write `check("{id}", {names[0]})`.'
    if not calls:
        refuse("exercise-check", id, f"has a {part} that calls no check", remedy)
    for call in calls:
        said = ast.unparse(call)
        given = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else None
        if given != id or len(call.args) != 2:
            refuse("exercise-check", id, f"has a {part} that calls `{said}`", remedy)
        if not {node.id for node in ast.walk(call.args[1]) if isinstance(node, ast.Name)} & {
            name.split(".")[0] for name in names
        }:
            refuse("exercise-check", id, f"has a {part} that checks something else: `{said}`", remedy)
