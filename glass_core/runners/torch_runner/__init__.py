"""The reference runner in torch: CPU or CUDA, float32 or bfloat16; the oracle of every parity test."""

from glass_core.runners.torch_runner.runner import TorchRunner, load

__all__ = ["TorchRunner", "load"]
