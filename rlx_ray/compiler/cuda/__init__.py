"""The CUDA backend: MIR to kernel launches, CUDA text, and a cubin or PTX by NVRTC."""
