"""Nothing of one test's processes reaches the next one; a stand-in for another processor is one for oneDNN, too."""

import os

import pytest

# torch's bf16 attention asks oneDNN what the processor has, and packs for AVX-512 where its own kernels may not.
if os.environ.get("ATEN_CPU_CAPABILITY") in ("avx2", "default"):
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Forget where processes met: a run inside pytest leaves address and port behind, and its store holds the port."""
    for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "NODE_RANK", "LOCAL_RANK"):
        os.environ.pop(name, None)
