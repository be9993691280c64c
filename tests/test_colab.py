"""Colab: the set-up cell installs this package alone; nothing that was there changes its version, and a lesson runs.

The case is real except for the address: a clean virtual environment with the preinstalled packages only, and the repository
taken from this folder in place of the public one.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from course_utils import bootstrap
from course_utils.notebooks import build, source

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"


def quietly(command, **options):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=900, **options)


def installed(python) -> dict[str, str]:
    listed = quietly([python, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"], check=True).stdout
    return {package["name"].lower(): package["version"] for package in json.loads(listed)}


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """A virtual environment that holds what Colab has and nothing of ours."""
    folder = tmp_path_factory.mktemp("colab")
    quietly([sys.executable, "-m", "venv", folder], check=True)
    python = bootstrap.venv_python(folder)
    version = bootstrap.torch_version(CONSTRAINTS.read_text(encoding="utf-8"))
    for _, commands in bootstrap.torch_attempts(python, version):
        if commands and all(quietly(command, cwd=ROOT).returncode == 0 for command in commands):
            break
    else:
        pytest.skip("torch cannot be installed here: no package index can be reached")
    done = quietly([python, "-m", "pip", "install", "-q", "-c", CONSTRAINTS, "-r", ROOT / "tests" / "colab_preinstalled.txt"])
    if done.returncode:
        pytest.skip("the preinstalled packages cannot be installed here: no package index can be reached")
    return python


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_set_up_cell_adds_this_package_and_changes_nothing(colab, tmp_path):
    assert "course-utils" not in installed(colab)
    checkout = tmp_path / "course"
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, checkout, ignore=ignored)
    place = source.settings(ROOT)
    public = f"git+https://github.com/{place.repository}@{place.branch}"
    cells = [c.source for c in build.assemble(source.select(["00"], ROOT)[0]).cells if c.cell_type == "code"]
    assert public in cells[0]
    script = tmp_path / "lesson.ipy"
    pocket = "from course_utils.worlds import pocket; print(type(pocket.load()[0]).__name__, 'was brought along')"
    script.write_text("\n\n".join([*cells, pocket]).replace(public, str(checkout)), encoding="utf-8")
    before = installed(colab)
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = quietly([colab, "-m", "IPython", "--colors=NoColor", script], cwd=tmp_path, env=clean | {"MPLBACKEND": "agg"})
    after = installed(colab)
    assert after.pop("course-utils", None), done.stdout + done.stderr
    assert after == before
    assert done.returncode == 0 and "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    assert "Qwen2ForCausalLM was brought along" in done.stdout
    assert "00.rdro" in done.stdout and "does not hold" not in done.stdout
