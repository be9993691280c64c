"""What pyproject.toml cannot say: the folder `data` is installed beside the package, as `course_data`;
the configurations of `accelerate launch` are data as well."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["course_utils*"]), "course_data"],
    package_dir={"course_data": "data"},
    package_data={"course_data": ["**/*"], "course_utils.launch": ["*.yaml"]},
)
