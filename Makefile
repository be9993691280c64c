# A thin skin over course_utils/bootstrap.py, which holds the tasks and works without make too:
#   python course_utils/bootstrap.py course
# Options of a task: make course ARGS="--jobs 2". PYTHON names the Python to use, VENV the environment (.venv).

BOOTSTRAP_PYTHON := $(or $(PYTHON),python3)
export PYTHON VENV

.DEFAULT_GOAL := help
.PHONY: setup course lab test build check bench doctor lock clean help

setup course lab test build check bench doctor lock clean help:
	@$(BOOTSTRAP_PYTHON) course_utils/bootstrap.py $@ $(ARGS)
