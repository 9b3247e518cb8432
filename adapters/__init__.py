"""Engine adapters: the engine-neutral `Speculator`, the vLLM worker and the embedded engine."""
