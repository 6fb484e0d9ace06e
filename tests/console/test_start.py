"""What a command's process does not load, works all the same once it is asked for."""

from __future__ import annotations

import subprocess
import sys

_CODE = """
import sys
from onnx_tailor.console.start import start
start()
import onnx_ir as ir
dim = ir.SymbolicDim("n")
print("sympy.core" in sys.modules, str(dim + 1), "sympy.core" in sys.modules)
import sympy
print(sympy.Integer(2) + 1)
"""


def test_sympy_waits_for_the_first_symbolic_sum() -> None:
    done = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["False", "n", "+", "1", "True", "3"], done.stderr
