"""The three levels: HIR (model blocks), MIR (an op DAG), LIR (kernels, memory and schedule)."""
