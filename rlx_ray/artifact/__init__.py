"""What a compiled variant is: its manifest and blobs, and the launch plan of a CUDA one."""
