"""bitsandbytes without torch's compilers, which would be most of what a device's process loads."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import sys
import torch
compiled = torch.compile
import mobillm_flower.{module}
assert torch.compile is compiled
print([name for name in ("torch._dynamo", "torch._inductor", "scipy.optimize") if name in sys.modules])
"""


@pytest.mark.parametrize("module", ["core.codecs", "clients.side_tuning", "strategies.fed"])
def test_no_compiler_is_loaded_and_torch_is_left_as_it_was(module: str) -> None:
    code = CODE.format(module=module)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip().splitlines()[-1:]) == (0, ["[]"]), done.stderr
