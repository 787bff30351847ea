#!/usr/bin/env bash
# Install the reference library beside this environment, for comparison only: never a dependency.
set -euo pipefail
for version in 1.16.0 1.13.0 1.12.0; do # 1.13.0 is the last with BCO, 1.12.0 the last with PPO
  python -m pip install --quiet --no-deps --upgrade --target "build/peers/trl-$version" "trl==$version"
done
