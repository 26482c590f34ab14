"""JavaScript clients against our server: OpenAI's, Anthropic's and Ollama's. The scripts have what is asked and
expected."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.clients.conftest import PICTURES

HERE = Path(__file__).parent
SCRIPTS = ["openai_client.mjs", "anthropic_client.mjs", "ollama_client.mjs"]

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts beside the clients, which npm installs."""
    if shutil.which("npm") is None:
        pytest.skip("there is no npm here")
    folder = tmp_path_factory.mktemp("javascript")
    for name in ("package.json", *SCRIPTS):
        shutil.copy(HERE / name, folder)
    quiet = ["--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--loglevel", "error"]
    done = subprocess.run(
        ["npm", "install", *quiet], cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )
    if done.returncode != 0:
        pytest.skip(f"npm cannot install the clients: {done.stderr[-300:]}")
    return folder


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_sees_streams_and_tells_errors_apart(url: str, folder: Path, script: str) -> None:
    command = ["node", script, url, str(PICTURES / "red-circle.png")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "all right"), done.stderr
