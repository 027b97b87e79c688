# make demo: install, then train CLIP on captioned emoji.  make test: install, then run the tests.  make lint: ruff.
PYTHON ?= python3
RUN = .venv/bin/

demo: .venv/demo
	$(RUN)accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		recipes/clip.py --output_dir runs/clip --overwrite_output_dir

test: .venv/dev
	$(RUN)python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder --durations 20

lint: .venv/dev
	$(RUN)ruff check .
	$(RUN)ruff format --check .

# --no-compile: Python compiles what is imported when it is first imported, instead of a minute of everything now; and
# must be allowed to keep it, or every process would compile torch again
unexport PYTHONDONTWRITEBYTECODE
INSTALL = $(RUN)pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable

.venv/demo: pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(INSTALL) ".[demo]"
	touch $@

.venv/dev: .venv/demo
	$(INSTALL) ".[demo,dev,look]"
	touch $@

.PHONY: demo test lint
