"""The doctor's judgements, about machines that we do not have as well as about this one."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from course_utils import doctor, machine
from course_utils.doctor import NOTE, OK, PROBLEM, SUPPORTED, diagnose
from course_utils.machine import Accelerator, Machine

ROOT = Path(__file__).resolve().parents[1]
GOOD = Machine(
    python=(3, 12, 4),
    system="Linux",
    processor="x86_64",
    cores=2,
    memory_mb=16_000,
    memory_available_mb=12_000,
    memory_limit_mb=None,
    disk_free_mb=50_000,
    versions={
        "torch": "2.13.0+cpu",
        "numpy": "2.4.6",
        "matplotlib": "3.11.2",
        "transformers": "5.23.0",
        "datasets": "5.2.0",
        "papermill": "2.7.0",
        "jupytext": "1.19.6",
        "trl": "1.16.0",
    },
)
T4 = Accelerator("cuda", "Tesla T4", 15_800, (7, 5), bf16=False)
H200 = Accelerator("cuda", "NVIDIA H200", 150_000, (9, 0), bf16=True)


def row(found, subject):
    return next(finding for finding in found.rows if finding.subject == subject)


def versions(**changes):
    return {**GOOD.versions, **changes}


def test_a_good_machine_has_nothing_to_mend_for_the_cpu_lessons():
    found = diagnose(GOOD)
    assert found.ok and all(finding.status == OK for finding in found.findings)
    assert "90 s each" in row(found, "CPU lessons").value
    assert row(found, "GPU lessons").status == NOTE and "rehearsal" in row(found, "GPU lessons").value


def test_colab_with_a_t4_has_no_bf16_and_lacks_only_what_is_optional():
    colab = replace(
        GOOD,
        host="Colab",
        clone=False,
        python=(3, 13, 1),
        accelerator=T4,
        versions=versions(
            torch="2.11.0+cu128", transformers="5.15.0", datasets="4.0.0", trl=None, papermill=None
        ),
    )
    found = diagnose(colab)
    assert found.ok
    assert "no bf16" in row(found, "device").value and row(found, "device").status == NOTE
    assert row(found, "trl").status == NOTE and "%pip install" in row(found, "trl").remedy
    assert "restart the runtime" in row(found, "trl").remedy
    assert "make lab" not in str(found)


def test_binder_with_two_gigabytes_and_one_core_runs_one_lesson_at_a_time_and_slower():
    binder = replace(
        GOOD, host="Binder", cores=1, memory_mb=64_000, memory_available_mb=60_000, memory_limit_mb=2_147
    )
    found = diagnose(binder)
    assert found.ok
    assert row(found, "memory").status == NOTE and "one lesson at a time" in row(found, "memory").remedy
    assert "limited to 2.1 GB" in row(found, "memory").value
    assert row(found, "cores").status == NOTE and "three minutes" in row(found, "CPU lessons").value


def test_too_little_memory_stops_the_lessons_and_the_remedy_fits_the_place():
    low = {"memory_available_mb": 900}
    places = {
        "Kernel > Shut Down": replace(GOOD, host="Binder", **low),
        ".wslconfig": replace(GOOD, wsl=True, **low),
        "--memory=4g": replace(GOOD, memory_limit_mb=1_000, **low),
        "close other programs": replace(GOOD, **low),
    }
    for remedy, place in places.items():
        found = diagnose(place)
        assert not found.ok and remedy in row(found, "memory").remedy
        assert "memory" in row(found, "CPU lessons").value


@pytest.mark.parametrize(
    ("version", "system", "remedy"),
    [
        ((3, 10, 12), "Linux", "package manager"),
        ((3, 9, 6), "Darwin", "brew install"),
        ((3, 14, 0), "Windows", "winget install"),
    ],
)
def test_a_python_that_is_too_old_or_too_new_is_told_what_to_install_on_its_system(version, system, remedy):
    found = diagnose(replace(GOOD, python=version, system=system, processor="arm64"))
    assert not found.ok and row(found, "Python").status == PROBLEM
    assert "3.11 to 3.13" in row(found, "Python").value and remedy in row(found, "Python").remedy


def test_windows_is_told_of_commands_that_work_without_make():
    found = diagnose(replace(GOOD, system="Windows", processor="AMD64", versions=versions(torch=None)))
    assert not found.ok and "bootstrap.py" in row(found, "torch").remedy
    assert "make" not in row(found, "torch").remedy


def test_macs_are_told_apart_by_their_processor():
    apple = Accelerator("mps", "Apple GPU")
    silicon = diagnose(replace(GOOD, system="Darwin", processor="arm64", accelerator=apple))
    assert silicon.ok and "Apple Silicon" in row(silicon, "platform").value
    assert row(silicon, "GPU lessons").status == NOTE  # they are written for CUDA
    intel = diagnose(replace(GOOD, system="Darwin", processor="x86_64"))
    assert not intel.ok and "Intel" in row(intel, "platform").value


def test_versions_out_of_range_are_called_too_old_or_too_new():
    found = diagnose(replace(GOOD, versions=versions(torch="2.5.1", transformers="6.0.0", trl="1.15.0")))
    assert "too old" in row(found, "torch").value and row(found, "torch").status == PROBLEM
    assert "too new" in row(found, "transformers").value
    assert "too old" in row(found, "trl").value and row(found, "trl").status == NOTE
    assert not found.ok and "torch" in row(found, "CPU lessons").value


@pytest.mark.parametrize(
    ("version", "supported", "inside"),
    [
        ("2.13.0+cpu", ">=2.6", True),
        ("2.6", ">=2.6.0", True),
        ("2.10.0", ">=2.6", True),
        ("5.0.0.dev0", ">=4.57.6,<6", True),
        ("4.57.5", ">=4.57.6,<6", False),
        ("6.0", ">=4.57.6,<6", False),
        ("1.17.0", ">=1.16,<1.17", False),
    ],
)
def test_versions_are_compared_as_numbers(version, supported, inside):
    assert doctor._within(version, supported) is inside


def test_the_supported_versions_are_those_of_the_project_file():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    written = project["dependencies"] + [
        line for lines in project["optional-dependencies"].values() for line in lines
    ]
    for name, supported, _ in SUPPORTED:
        ranges = {line[len(name) :] for line in written if line.startswith((f"{name}>", f"{name}<"))}
        assert ranges == {supported}, name
    (low, high) = doctor.PYTHON
    assert project["requires-python"] == f">={low[0]}.{low[1]},<{high[0]}.{high[1]}"


def test_a_large_card_runs_the_gpu_lessons_and_a_small_one_is_told_so():
    assert row(diagnose(replace(GOOD, accelerator=H200)), "GPU lessons").status == OK
    assert (
        "LoRA" in row(diagnose(replace(GOOD, accelerator=replace(T4, memory_mb=8_000))), "GPU lessons").value
    )
    small = row(diagnose(replace(GOOD, accelerator=replace(T4, memory_mb=4_000))), "GPU lessons")
    assert small.status == NOTE and "4 GB is too little" in small.value
    without = diagnose(replace(GOOD, accelerator=H200, versions=versions(trl=None)))
    assert "libraries are missing" in row(without, "GPU lessons").value


def test_a_torch_that_does_not_start_is_said_and_stops_the_lessons():
    found = diagnose(replace(GOOD, torch_error="libcudart.so.12: cannot open shared object file"))
    assert not found.ok and "libcudart" in row(found, "device").value


def test_the_diagnosis_has_the_same_rows_on_every_machine_and_both_forms_say_the_same():
    machines = [
        GOOD,
        replace(GOOD, accelerator=H200),
        replace(
            GOOD, python=(3, 8, 0), host="Binder", versions={}, memory_available_mb=None, disk_free_mb=None
        ),
    ]
    subjects = [[finding.subject for finding in diagnose(each).rows] for each in machines]
    assert subjects[0] == subjects[1] == subjects[2]
    found = diagnose(machines[2])
    page = found._repr_html_()
    assert page.count("<tr") == len(found.rows) + 1
    for finding in found.rows:
        assert finding.value in str(found) and f"{doctor.SYMBOL[finding.status]} {finding.status}" in page


def test_what_is_wrong_always_comes_with_what_to_do():
    bad = replace(
        GOOD, python=(3, 8, 0), versions={}, memory_available_mb=500, disk_free_mb=100, torch_error="broken"
    )
    for finding in diagnose(bad).findings:
        assert finding.status != PROBLEM or finding.remedy, finding.subject


def test_this_machine_can_be_looked_at_and_the_command_prints_it():
    found = machine.probe(device=False)
    assert found.cores >= 1 and found.python == sys.version_info[:3]
    assert found.versions["numpy"] and found.memory_mb > 500
    done = subprocess.run(
        [sys.executable, "-m", "course_utils.doctor"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=ROOT,
    )
    assert done.returncode in (0, 1) and "CPU lessons" in done.stdout and "Traceback" not in done.stderr


def test_the_host_the_container_and_the_quota_are_found_from_what_they_announce(monkeypatch):
    files = {"/sys/fs/cgroup/memory.max": "2147483648", "/sys/fs/cgroup/cpu.max": "50000 100000"}
    monkeypatch.setattr(machine, "_read", lambda path: files.get(path, ""))
    for name in machine.HOSTS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("MEM_LIMIT", raising=False)
    monkeypatch.setenv("BINDER_REPO_URL", "somewhere")
    assert machine.container_memory_mb() == pytest.approx(2147.483648)
    assert machine.usable_cores() == 0.5 and machine.threads_for() == 1
    assert machine.probe(device=False).host == "Binder"
    files.update({"/sys/fs/cgroup/memory.max": "max", "/sys/fs/cgroup/cpu.max": "max 100000"})
    assert machine.container_memory_mb() is None and machine.usable_cores() >= 1
    monkeypatch.setenv("MEM_LIMIT", "1000000000")
    assert machine.container_memory_mb() == 1000
    files["/sys/fs/cgroup/memory.max"] = "2000000000"
    assert machine.container_memory_mb() == 1000  # the smaller one counts


def test_side_by_side_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 8.0)
    assert [machine.threads_for(jobs) for jobs in (1, 2, 3, 16)] == [8, 4, 2, 1]
