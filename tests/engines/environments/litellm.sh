#!/usr/bin/env bash
# An environment with LiteLLM's SDK: what tests/engines/test_litellm_provider.py needs. Providers are stand-ins, no key is
# needed.
#
#   tests/engines/environments/litellm.sh DIRECTORY        (about 700 MB; PYTHON=python3.12 chooses another Python)
#   DIRECTORY/bin/python -m pytest tests/engines/test_litellm_provider.py -m engine_reference
set -euo pipefail
target=${1:?the directory of the environment to be made}
"${PYTHON:-python3}" -m venv "$target"
"$target/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[dev,litellm]'
"$target/bin/python" -c 'import importlib.metadata; print("litellm", importlib.metadata.version("litellm"))'
