"""Everything that is measured on a GPU, without an export or an installation.

    python3 -m bench.gpu_report --out DIR --seconds 280

runs from a checkout with the packages that the machine has, on random models made in memory. One
process measures in stages; another one watches it and starts it again after a job that hangs or
crashes it. TensorRT, ONNX Runtime and the ladder come last, as commands of lddgan. Every row is
written as soon as it exists; a job that cannot be done is a row with the reason. What the folder
holds of the same code, GPU and versions is not measured again.
"""

from typing import Final

DATASETS: Final = ("lsun", "celeba_256", "cifar10")
BATCHES: Final = (100, 1)
