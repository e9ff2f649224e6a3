"""Everything that is measured on a GPU, without an export or an installation.

    python3 -m bench.gpu_report --out DIR --seconds 280

runs from a checkout with whatever the machine has, on random models made in memory.  One process
does all of it in stages; it is started again after a job that hangs or crashes it.  TensorRT, ONNX
Runtime and the ladder come last, as commands of lddgan.  Each row is written at once, and what
cannot be measured with its reason.  What the folder holds of the same code, GPU and versions is not
measured again.
"""

from typing import Final

DATASETS: Final = ("lsun", "celeba_256", "cifar10")
BATCHES: Final = (100, 1)
