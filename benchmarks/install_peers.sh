#!/usr/bin/env bash
# Install the reference library beside this environment, for comparison only: never a dependency.
set -euo pipefail
python -m pip install --quiet --no-deps --upgrade --target build/peers/trl-1.16.0 trl==1.16.0
