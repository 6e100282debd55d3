#!/usr/bin/env bash
# Run by Snakemake from the checkout, inside the new environment.
set -euo pipefail
python -m pip install --quiet --no-deps --no-build-isolation --editable .
