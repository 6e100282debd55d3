# make bench     set up, then reproduce the embedded default (ARGS="--configfile config/full.yaml" for more)
# make fast      the tests that start no process and predict nothing big, in three minutes: before each commit
# make test      set up, then run the tests
# make coverage  the tests again, and which lines and branches of src they reach (runs/coverage)
# make oracle-test  tests against references that need older libraries, in an environment of their own
# make test-oldest  predictions and the meter on the oldest torch and transformers that pyproject.toml allows
# make faults    put faults in on purpose and count what survives (ARGS="-n 2" on two cores)
# make matrix    every method on tiny models of 40 architectures, and docs/matrix.md of them; goes on where it ended
# make smoke     tiny cells of every kind through the whole DAG
# make slurm-test  the smoke grid on a real Slurm of one node; installs it where root and apt are there
# make gpu-test  what only a GPU can tell: predicted against measured peaks, clocks; records in runs/gpu
# make fuzz      100,000 odd inputs for everything that reads files (N=... for fewer)
# make audit     known weaknesses of the locked packages, where the database can be reached
# make lint      style, types, workflow and plugin files
# make report-test  the report in headless Chromium; installs it where root and apt are there
# make docs      the documentation as a site, site/index.html
# make benchmarks  speed against peers in the same run
# make publish   copy the run of config/full.yaml, records and tables, into results/, its leaderboards into the README,
#                and write report/ and figures/ there (CONFIG=runs/default/config.json TO=results/default for another
#                run, which leaves the README alone)
PYTHON ?= python3
CONFIG ?= runs/full/config.json
TO ?= results
BIN := .venv/bin
READY := .venv/.ready
ORACLE := .venv-oracle/.ready
OLDEST := .venv-oldest/.ready

# apt has one lock, and two of the targets below may run beside each other.
APT := flock $${TMPDIR:-/tmp}/leantune-apt.lock apt-get
# Two processes: the tests take one thread and less than 2 GB apiece. One that is done takes work
# from the other.
PYTEST := -m pytest -n 2 --dist worksteal

.PHONY: setup bench fast test coverage test-slow oracle-test test-oldest report-test slurm-test gpu-test faults fuzz audit matrix \
  smoke lint docs publish benchmarks
.DELETE_ON_ERROR:

setup: $(READY)

bench: $(READY)
	$(BIN)/python -m leantune.workflow.launch $(ARGS)

fast: $(READY)
	$(BIN)/python $(PYTEST) -m "not process and not slow and not oracle_env and not gpu and not browser and not slurm" $(ARGS)

test: $(READY)
	$(BIN)/python $(PYTEST) $(ARGS)

# The processes that tests start count too, so the file's place is given as a whole path.
coverage: export COVERAGE_FILE := $(CURDIR)/runs/coverage/data
coverage: $(READY)
	rm -rf runs/coverage && mkdir -p runs/coverage
	$(BIN)/python -m coverage run $(PYTEST) $(ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report | tee runs/coverage/report.txt

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow $(ARGS)

oracle-test: $(READY) $(ORACLE)
	$(BIN)/python -m pytest -m oracle_env $(ARGS)

test-oldest: export PYTHONPATH := src
test-oldest: $(OLDEST)
	.venv-oldest/bin/python $(PYTEST) $(addprefix tests/test_,predict.py simulate.py footprint.py meter_*.py) $(ARGS)

report-test: $(READY)
	@if command -v chromium >/dev/null; then :; \
	elif [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "report-test was not run: it needs Chromium, or root and apt to install it"; exit 0; \
	else $(APT) install -y -qq --no-install-recommends chromium >/dev/null 2>&1 \
	  || { $(APT) update -qq && $(APT) install -y -qq --no-install-recommends chromium >/dev/null 2>&1; } \
	  || { echo "report-test was not run: apt could not install chromium"; exit 0; }; fi; \
	$(BIN)/python -m pytest -m browser tests/test_report_browser.py $(ARGS)

faults: $(READY)
	$(BIN)/python -m tests.run_faults $(ARGS)

matrix: $(READY)
	$(BIN)/python -m tests.matrix --publish $(ARGS)

slurm-test: $(READY)
	@if [ "$$(id -u)" != 0 ]; then echo "slurm-test was not run: it needs root"; exit 0; \
	elif command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null; then :; \
	elif ! command -v apt-get >/dev/null; then \
	  echo "slurm-test was not run: it needs apt to install Slurm"; exit 0; \
	else $(APT) install -y -qq --no-install-recommends slurm-wlm munge >/dev/null 2>&1 \
	  || { $(APT) update -qq && $(APT) install -y -qq --no-install-recommends slurm-wlm munge >/dev/null 2>&1; } \
	  || { echo "slurm-test was not run: apt could not install slurm-wlm and munge"; exit 0; }; fi; \
	$(BIN)/python -m pytest -m slurm tests/test_slurm.py $(ARGS)

gpu-test: $(READY)
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; \
	then $(BIN)/python -m pytest -m gpu -s tests $(ARGS); \
	else echo "gpu-test was not run: torch sees no CUDA device (docs/gpu.md tells which build it needs)"; fi

N ?= 100000
fuzz: $(READY)
	$(BIN)/python tests/fuzz.py --inputs $(N) --out runs/fuzz.json $(ARGS)

audit: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit
	@if $(BIN)/python -c 'import urllib.request as u; u.urlopen("https://pypi.org/pypi/pip/json", timeout=20)' 2>/dev/null; \
	then $(BIN)/python -m pip_audit --strict --no-deps --disable-pip --requirement envs/lock.txt $(ARGS); \
	else echo "audit was not run: pypi.org, which has the database, cannot be reached"; fi

# Speed against peers, rounds interleaved; wants an idle machine.
benchmarks: $(READY)
	$(BIN)/python -m pytest benchmarks -o python_files='bench_*.py' --benchmark-json=runs/benchmarks.json -s $(ARGS)

smoke: $(READY)
	$(BIN)/python -m leantune.workflow.launch --configfile config/smoke.yaml $(ARGS)

lint: export PATH := $(CURDIR)/$(BIN):$(PATH)
lint: $(READY)
	ruff check .
	ruff format --check .
	mypy
	snakefmt --check Snakefile
	snakemake --lint
	leantune validate

# Read it from disk, or serve the folder to have the search; nothing in it is loaded from the network.
docs: export NO_MKDOCS_2_WARNING := 1
docs: $(READY)
	$(BIN)/python -m mkdocs build --strict

publish: $(READY)
	$(BIN)/leantune publish --config $(CONFIG) --to $(TO) $(if $(filter results,$(TO)),--readme README.md)
	$(BIN)/leantune report --results $(TO)
	$(BIN)/leantune report --results $(TO) --figures $(TO)/figures

# Set up once, and again when the lock changes.
$(READY): envs/lock.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo \
	  "LeanTune needs Python 3.11 or newer, '$(PYTHON)' is not: name one with  make PYTHON=python3.12 $(MAKECMDGOALS)" \
	  >&2; exit 1; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r envs/lock.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# transformers 4.57 and the references that need it; tests start it as another process.
$(ORACLE): envs/oracle.txt | $(READY)
	$(PYTHON) -m venv --clear .venv-oracle
	.venv-oracle/bin/python -m pip install --quiet --disable-pip-version-check -r envs/oracle.txt
	touch $@

$(OLDEST): envs/oldest.txt
	$(PYTHON) -m venv --clear .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -r envs/oldest.txt
	touch $@
