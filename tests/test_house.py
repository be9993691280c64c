"""The rules of the house: imports point one way, importing is cheap, errors are explained, nothing unsafe is called."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "course_utils"
FILES = sorted(PACKAGE.rglob("*.py"))

# Who may import whom: a module of the left may not reach anything of the right, at the top of a file or inside a function.
FORBIDDEN = {
    "worlds": {"training", "notebooks", "labs", "trl_bridge", "experiments", "cli", "evaluation"},
    "preferences": {"training", "notebooks", "labs", "trl_bridge", "experiments", "cli", "evaluation"},
    "objectives": {"worlds", "preferences", "training", "notebooks", "labs", "trl_bridge", "policies", "evaluation"},
    "density_ratios": {"worlds", "preferences", "training", "notebooks", "labs", "objectives", "policies"},
    "statistics": {"worlds", "preferences", "training", "notebooks", "labs", "objectives", "policies"},
    "training": {"notebooks", "labs", "cli", "trl_bridge", "experiments"},
    "experiments": {"notebooks", "labs", "cli"},
    "ledger": {"worlds", "training", "notebooks", "labs"},
}
TRL_ALLOWED = {"trl_bridge"}
TRANSFORMERS_ALLOWED = ("policies", "real_models", "sampling", "trl_bridge", "worlds/pocket", "causal_lm", "reward_models", "gpu", "doctor", "machine")


def module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix().removesuffix(".py").removesuffix("/__init__")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_one_way(path):
    module, found = module_of(path), imports(path)
    for forbidden in FORBIDDEN.get(module.split("/")[0], set()):
        assert not [name for name in found if name.startswith(f"course_utils.{forbidden}")], f"{module} imports {forbidden}"
    if module.split("/")[0] not in TRL_ALLOWED:
        assert not [name for name in found if name.split(".")[0] == "trl"]
    if not module.startswith(TRANSFORMERS_ALLOWED):
        assert not [name for name in found if name.split(".")[0] == "transformers"]


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_nothing_reads_pickles_or_runs_remote_code(path):
    text = path.read_text(encoding="utf-8")
    assert not {"pickle", "dill", "joblib.load"} & imports(path)
    assert "trust_remote_code" not in text
    assert not re.search(r"torch\.load\(", text)


def test_importing_the_package_is_cheap_and_brings_no_heavy_library():
    code = (
        "import time; start = time.perf_counter(); import course_utils; took = time.perf_counter() - start; "
        "import sys; heavy = {'torch', 'transformers', 'trl', 'matplotlib', 'numpy'} & set(sys.modules); "
        "print(heavy or 'none', took < 0.5)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert out.split() == ["none", "True"]


def test_the_finite_tier_runs_with_transformers_and_trl_absent():
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"transformers", "trl", "datasets", "accelerate", "peft", "scipy", "tokenizers"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from course_utils import bradley_terry, density_ratios, ledger, objectives, plots, policies, preferences, references, statistics
from course_utils.labs.checks import check
from course_utils.worlds.finite import FiniteWorld
world = FiniteWorld.random(responses=4, seed=1)
found = world.population_minimiser("rdro", alpha=0.5)
assert (found - world.preferred_distribution()).abs().max() < 1e-6
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "fine", done.stderr


def error_ids() -> dict[str, str]:
    """The ids that the package raises: the first argument of CourseError, or the `id` that a small helper hands on."""
    found = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "CourseError":
                first = node.args[0] if node.args else None
                if isinstance(first, ast.Constant):
                    found[first.value] = module_of(path)
    return found


def explained() -> set[str]:
    return set(re.findall(r"^### `([a-z0-9-]+)`", (ROOT / "TROUBLESHOOTING.md").read_text(encoding="utf-8"), re.MULTILINE))


def test_every_error_is_explained_in_troubleshooting():
    missing = {id: where for id, where in error_ids().items() if id not in explained()}
    assert not missing


def test_troubleshooting_explains_no_error_that_does_not_exist():
    text = "\n".join(path.read_text(encoding="utf-8") for path in FILES)
    assert not [id for id in explained() if f'"{id}"' not in text and f'-{id.split("-", 1)[-1]}"' not in text]


def test_no_file_names_a_machine_or_a_package_host():
    hosts = re.compile(r"pypi\.org|pythonhosted|download\.pytorch|registry\.npmjs|deb\.debian")
    paths = re.compile(r"(?<![\w.])/(work|root)/[a-z]")
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT).stdout.split()
    for name in tracked:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".yml", ".txt", ".ipynb", ".json", ".cff", ""} and path.is_file():
            text = path.read_text(encoding="utf-8", errors="ignore")
            assert not hosts.search(text) or name == "tests/test_house.py", name
            assert not paths.search(text) or name.startswith("tests/"), name
